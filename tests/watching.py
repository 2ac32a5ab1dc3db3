"""Pages in a real browser, with a record of what they print and ask for."""

from __future__ import annotations

from typing import Any

FAILED_REQUEST = "Failed to load resource"
"""Chromium reports every error status and every failed request on the console by itself."""


class Watcher:
    """Opens pages of a Playwright browser. Dialogs are recorded as messages and dismissed."""

    def __init__(self, browser: Any):
        self.browser = browser
        self.contexts: list[Any] = []
        self.messages: list[str] = []
        self.urls: list[str] = []

    def open(self, address: str, context: Any = None, **options: Any) -> Any:
        """The page at `address`, in a context of its own with these options unless one is passed."""
        if context is None:
            context = self.browser.new_context(**options)
        if context not in self.contexts:
            self.contexts.append(context)
            context.on("request", lambda request: self.urls.append(request.url))
        page = context.new_page()
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", self._dismiss)
        page.goto(address)
        return page

    def _dismiss(self, dialog: Any) -> None:
        self.messages.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def close(self) -> None:
        for context in self.contexts:
            context.close()

    def script_messages(self) -> list[str]:
        """The messages of scripts, without those on failed requests."""
        return [message for message in self.messages if not message.startswith(FAILED_REQUEST)]

    def urls_outside(self, *allowed: str) -> list[str]:
        """The addresses that were asked for, except those that start with one of `allowed`."""
        return [url for url in self.urls if not url.startswith(allowed)]
