"""Words that a browser has broken in the middle."""

from __future__ import annotations

from typing import Any

WORD = 12  # letters that fit beside figures on a phone
BROKEN = """([selector, most]) => {
  const broken = [];
  for (const element of document.querySelectorAll(selector)) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode());) {
      for (const match of node.data.matchAll(/[^\\s/-]+/g)) {
        const range = document.createRange();
        range.setStart(node, match.index);
        range.setEnd(node, match.index + match[0].length);
        const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
        if (match[0].length <= most && lines.size > 1) broken.push(match[0]);
      }
    }
  }
  return broken;
}"""


def broken_words(page: Any, selector: str, most: int = WORD) -> list[str]:
    """Words of at most `most` letters in the elements that take more than one line."""
    assert page.locator(selector).count() > 0, selector
    return page.evaluate(BROKEN, [selector, most])
