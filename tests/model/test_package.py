import raystream.model as model


def test_the_public_names_are_listed():
    """`__all__` is sorted, and every name is there."""
    assert model.__all__ == sorted(model.__all__)
    assert all(hasattr(model, name) for name in model.__all__)
