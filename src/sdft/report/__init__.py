"""The report of a run: read the folder (`source`), say what it shows (`facts`, `verdict`), draw it (`page`).

Everything is made from files. Nothing here needs torch, a network, or the stages that wrote the folder.
"""
