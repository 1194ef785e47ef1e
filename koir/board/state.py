"""Controls whose state lives in the URL, so that every view is a link."""

from collections.abc import Callable, Sequence

import streamlit as st

KEPT = "kept in the URL"  # key -> values of every control, as `_keep` left them
TOUCHED = "a control was touched"


def follow_url() -> None:
    """Forget the controls that the URL is no longer as `_keep` left it for: the reader went back or forth.

    Where a control was touched, the URL may only lag behind: the browser had not heard yet of what was written last.
    """
    kept = st.session_state.setdefault(KEPT, {})
    if st.session_state.pop(TOUCHED, False):
        return
    for key, values in kept.items():
        if st.query_params.get_all(key) != values:
            st.session_state.pop(key, None)


def pick(
    widget: Callable,
    label: str,
    options: Sequence,
    key: str,
    default: object = None,
    shown: Callable[[object], str] = str,
    **more: object,
) -> object:
    """A widget that chooses one option. The URL holds `str(option)` under `key`, and nothing for the default."""
    default = options[0] if default is None else default
    named = {str(option): option for option in options}
    value = st.session_state.get(key, named.get(st.query_params.get(key), default))
    st.session_state[key] = value if value in options else default
    value = widget(label, options, key=key, format_func=shown, on_change=_touched, **more)
    _keep(key, [] if value == default else [str(value)])
    return value


def pick_some(label: str, options: Sequence, key: str, shown: Callable[[object], str] = str, **more: object) -> list:
    """A multiselect whose choices are repeated keys of the URL; none chosen is the default."""
    named = {str(option): option for option in options}
    chosen = [named[text] for text in st.query_params.get_all(key) if text in named]
    st.session_state[key] = [value for value in st.session_state.get(key, chosen) if value in options]
    values = st.multiselect(label, options, key=key, format_func=shown, on_change=_touched, **more)
    _keep(key, [str(value) for value in values])
    return values


def written(label: str, key: str) -> str:
    """A text field."""
    st.session_state[key] = st.session_state.get(key, st.query_params.get(key, ""))
    value = st.text_input(label, key=key, on_change=_touched).strip()
    _keep(key, [value] if value else [])
    return value


def switched(label: str, key: str, **more: object) -> bool:
    """A toggle, off by default."""
    st.session_state[key] = st.session_state.get(key, st.query_params.get(key) == "1")
    value = st.toggle(label, key=key, on_change=_touched, **more)
    _keep(key, ["1"] if value else [])
    return value


def _touched() -> None:
    st.session_state[TOUCHED] = True


def _keep(key: str, values: list[str]) -> None:
    """Write a key to the URL only where it changes: each write is a message to the browser."""
    st.session_state[KEPT][key] = values
    if st.query_params.get_all(key) == values:
        return
    if values:
        st.query_params[key] = values
    else:
        del st.query_params[key]
