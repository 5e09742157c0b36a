"""The page that `mmprefix demo` starts: captions of what is dropped, recorded or pasted, and a look inside the prefix."""
