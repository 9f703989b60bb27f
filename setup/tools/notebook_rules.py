"""The rules for notebooks, one function a rule (used by `notebooks.py check`)."""


def findings(path, root, budgets, strict_budgets=False):
    return []
