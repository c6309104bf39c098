"""Turns csrc/manifest.json into what the package ships: PTX, cubin and metadata of each kernel.

Standard library only and Python 3.10: CMake runs it (``python -m kernel_build``), with ``csrc`` on
``PYTHONPATH``, on machines that have nothing else yet.
"""
