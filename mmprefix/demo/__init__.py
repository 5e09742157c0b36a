"""The page that `mmprefix demo` starts: captions of what is dropped, recorded or pasted, with a look inside the prefix."""
