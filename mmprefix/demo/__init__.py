"""The page that `mmprefix demo` starts: captions of what is dropped, recorded or pasted, and a look inside the prefix.

Gradio's analytics and version check are switched off here, before it is imported.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
