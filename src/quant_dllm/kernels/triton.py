"""Stand-in until the kernels for GPUs land."""


def refuses(x, weight):
    return "there is no GPU kernel yet"


def multiply(x, packed, bias, facts):
    raise NotImplementedError
