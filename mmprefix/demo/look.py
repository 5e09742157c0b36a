"""Looks of the page: fonts of the visitor's own system, contrast, one column on a phone; nothing is fetched for it."""

from __future__ import annotations

from gradio.themes import Base

CSS = """
.gradio-container { width: 100%; max-width: min(100%, 1400px); margin: 0 auto; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll table { border-collapse: collapse; width: 100%; font-size: 0.95rem; }
@media (min-width: 800px) { .scroll td:nth-child(2) { min-width: 9rem; } }
.scroll caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
.scroll th, .scroll td { text-align: left; border: 1px solid #8a8f98; vertical-align: top; }
.scroll th, .scroll td { padding: 0.3rem 0.5rem !important; }
audio { width: 100%; }
progress { width: 12rem; max-width: 60vw; vertical-align: middle; }
#caption textarea { font-size: 1.25rem; }
:focus-visible { outline: 3px solid #1d4ed8 !important; outline-offset: 1px; }
.code textarea { font-family: ui-monospace, Consolas, monospace; }
button[role="tab"].selected { color: #1e40af !important; }
@media (prefers-color-scheme: dark) { button[role="tab"].selected { color: #93c5fd !important; } }
time#time, time#duration, .playback, .playback span { color: var(--body-text-color) !important; }
footer { display: none !important; }
"""

HEAD = """<script>
// A button inside a button cannot be reached by every screen reader: the outer ones lose the role.
function mend() {
  document.querySelectorAll(".toast-header[role=button]").forEach(header => {
    header.removeAttribute("role"); header.removeAttribute("tabindex");
  });
  document.querySelectorAll("button.icon-button:has(button, input):not([role])").forEach(outer => {
    outer.setAttribute("role", "group"); outer.setAttribute("aria-label", "Add files");
  });
}
new MutationObserver(mend).observe(document.documentElement, {childList: true, subtree: true});
</script>"""


def theme() -> Base:
    """Gradio's plain theme with fonts of the system and colours of enough contrast."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    made = Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono)
    return made.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        block_label_text_color="*neutral_800",
        block_title_text_color="*neutral_800",
        block_info_text_color="*neutral_700",
        body_text_color_subdued="*neutral_700",
        input_placeholder_color="*neutral_600",
    )
