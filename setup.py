"""What pyproject.toml cannot say for certain yet: the compiled part, left out where nothing compiles it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "service._ranking",
            ["service/_ranking.cpp"],
            extra_compile_args=["-std=c++17"],
            optional=True,
        ),
    ]
)
