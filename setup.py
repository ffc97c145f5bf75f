"""The package list, which pyproject.toml cannot express: `vtfast/kernels` is a symbolic link.

The kernels live in the top-level folder `kernels/`, which has no `__init__.py` (with one it would
shadow the Hugging Face package of that name), so setuptools' discovery would not find them as a
package. Named here they are followed through the link: wheel and sdist hold real files.
"""

from setuptools import setup

setup(
    packages=[
        "vtfast",
        "vtfast.cli",
        "vtfast.evaluation",
        "vtfast.information",
        "vtfast.inputs",
        "vtfast.kernels",
        "vtfast.methods",
        "vtfast.models",
        "vtfast.runtime",
        "vtfast.toy",
        "vtfast.tuning",
        "vtfast.vllm",
    ],
    package_data={"vtfast": ["py.typed"], "vtfast.toy": ["checkpoints/**"]},
    include_package_data=False,
)
