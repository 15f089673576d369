"""Operations: one a file, each with its fp32/fp64 reference, its schema, its fake and its back-ends.

Only this package imports Triton kernels (``prism_fast.kernels``) and the native extension (``prism_fast._C``).
"""
