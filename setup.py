"""What pyproject.toml cannot say for certain yet: the part in C, left out where nothing compiles it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("service._ranking", ["service/_ranking.c"], optional=True),
    ]
)
