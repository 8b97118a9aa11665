"""What pyproject.toml cannot say for certain yet: compiled parts, left out where nothing compiles them."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "service._ranking",
            ["service/_ranking.cpp"],
            depends=["model_store/lent_array.hpp"],
            extra_compile_args=["-std=c++17"],
            optional=True,
        ),
        Extension(
            "model_store._head",
            ["model_store/_head.cpp"],
            depends=["model_store/head_pass.hpp", "model_store/lent_array.hpp"],
            # Registers wider than what every processor has never cross a call.
            extra_compile_args=["-std=c++17", "-O2", "-Wno-psabi"],
            optional=True,
        ),
    ]
)
