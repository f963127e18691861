"""What a kernel package carries at run time; imports nothing of autosched."""
