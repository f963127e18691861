"""What a kernel package carries at run time: standard library and NumPy, nothing of autosched.

`package` is the lazy face that a package's `__init__` uses, `model` runs a whole tuned model,
`kernel` one kernel. Nothing here loads a library before its first use.
"""
