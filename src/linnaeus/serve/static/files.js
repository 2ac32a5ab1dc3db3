// Files that a user drops or chooses.

// All files of a drop, including those in folders.
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  while (entries.length) {
    const entry = entries.shift();
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
      if (file && !file.name.startsWith(".")) files.push(Object.assign(file, { path: entry.fullPath.slice(1) }));
    } else {
      // readEntries returns a folder in portions, the last of which is empty.
      const reader = entry.createReader();
      for (let portion; (portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) entries.push(...portion);
    }
  }
  return files;
}

// Whether the browser can read the file: fetch reports an unreadable file like an unreachable server.
export async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// The images that the page offers to click.
export async function exampleFiles() {
  const response = await fetch(new URL("./examples.json", import.meta.url), { credentials: "same-origin" });
  return (await response.json()).map(({ name, image }) => {
    const [head, content] = image.split(",");
    const type = head.slice("data:".length, head.indexOf(";"));
    return new File([Uint8Array.from(atob(content), (character) => character.charCodeAt(0))], name, { type });
  });
}
