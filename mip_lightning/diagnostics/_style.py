"""How all figures write their labels."""


def symbol(name: str) -> str:
    """How figures write the name of a dimension of gamma."""
    return r"$\gamma$" if name == "gamma" else name
