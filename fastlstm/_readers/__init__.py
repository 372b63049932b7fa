"""Readers of other libraries' files, without these libraries: `torch_files.load` and `keras_files.load`.

Files are untrusted: reading one runs nothing that it holds, takes memory and time in proportion to its bytes, and ends
in its values or a `FileError`.
"""
