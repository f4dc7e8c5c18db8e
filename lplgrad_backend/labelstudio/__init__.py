"""Label Studio's REST API, as far as this backend needs it. Nothing else speaks to it.

Verified against Label Studio 1.23.2; the source of each fact is the project's page on how it behaves.
"""

from lplgrad_backend.labelstudio.client import LOST_ANSWER, LabelStudio, backend_fields
from lplgrad_backend.labelstudio.tabs import SELDOM_READ, tab_fields

__all__ = ["LOST_ANSWER", "SELDOM_READ", "LabelStudio", "backend_fields", "tab_fields"]
