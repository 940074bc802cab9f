"""Kernels that know `%%cuda` from their first cell on."""

from jupyter_client.kernelspec import KernelSpecManager


class WorkbookKernelSpecs(KernelSpecManager):
    """The installed kernels, the Python ones started with the workbook's IPython extension."""

    def get_kernel_spec(self, kernel_name):
        spec = super().get_kernel_spec(kernel_name)
        if any("ipykernel" in argument for argument in spec.argv):
            spec.argv = [*spec.argv, "--ext=flashmoe_nb.workbook"]
        return spec
