"""Manifest → rows and their faults: JSON lines, or CSV with the same names as header.

A row has ``id``, one or more of ``image``, ``audio``, ``video``, ``signals`` (paths relative to the manifest,
``archive.zip::member`` inside a zip; a video may be a folder or a list of pictures, signals a list of numbers),
``captions`` (a list; in CSV a JSON list) or one ``caption`` or ``target``, and optionally ``prompt``, ``context`` (a
text, or a list of which training draws one), ``user``, ``label``, ``split``, ``start`` and ``end`` (seconds). A row of
text alone needs no input: it has a ``context`` or a ``transcript``. Unknown names are kept in ``extra``; those
of a model's branches of texts are inputs: a text, or a list of texts. Rows with one caption each that name the same
input are one example with all of them. Reading decodes nothing: it checks types, ids, texts and whether files exist.
"""

from mmprefix.data.manifest.example import Example, InputRef
from mmprefix.data.manifest.faults import RowFault, listing
from mmprefix.data.manifest.reader import read_manifest, repeated_inputs
from mmprefix.data.manifest.row import INPUTS, TEXTS, read_texts

__all__ = [
    "INPUTS",
    "TEXTS",
    "Example",
    "InputRef",
    "RowFault",
    "listing",
    "read_manifest",
    "read_texts",
    "repeated_inputs",
]
