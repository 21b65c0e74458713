// Builds the page: relay/page/chat.html, with its script and style inline, the files in relay/page/assets that it loads
// on first use, and relay/page/build.json, the hashes of what went in and came out.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const WEB = dirname(fileURLToPath(import.meta.url));
const PAGE = join(WEB, "..", "relay", "page");
const ASSETS = join(PAGE, "assets");
const FIRST_LOAD_LIMIT = 60 * 1024; // bytes, compressed

const stub = (name) => join(WEB, "src", "stubs", `${name}.ts`);
const OPTIONS = {
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome120", "firefox121", "safari17"],
  charset: "utf8",
  legalComments: "none",
  write: false,
  absWorkingDir: WEB,
  logLevel: "warning",
  alias: {
    "linkify-it": stub("linkify-it"),
    mdurl: stub("mdurl"),
    "punycode.js": stub("punycode"),
    entities: stub("entities"),
  },
};

// highlight.js' own functions for the DOM are not used: no sink for HTML is left in what is served.
const withoutSinks = {
  name: "without-sinks",
  setup(pluginBuild) {
    pluginBuild.onLoad({ filter: /highlight\.js[\\/]lib[\\/]core\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, "utf8").replaceAll(".innerHTML", ".textContent"),
      loader: "js",
    }));
  },
};
OPTIONS.plugins = [withoutSinks];

const bundle = async (entry, define = {}) =>
  (await build({ ...OPTIONS, entryPoints: [join(WEB, "src", entry)], define })).outputFiles[0].text;
const sha256 = (data, encoding) => createHash("sha256").update(data).digest(encoding);

rmSync(ASSETS, { recursive: true, force: true });
mkdirSync(ASSETS, { recursive: true });

/** Writes a file that the page loads on first use; its name holds its hash, so that it never changes. */
function asset(name, extension, text) {
  const file = `${name}-${sha256(text, "hex").slice(0, 16)}.${extension}`;
  writeFileSync(join(ASSETS, file), text);
  return { file, integrity: `sha256-${sha256(text, "base64")}` };
}

const exists = (path) => {
  try {
    return readFileSync(join(WEB, "src", path)).length > 0;
  } catch {
    return false;
  }
};

const scripts = {};
for (const name of ["math", "highlight"])
  if (exists(`${name}.ts`)) scripts[name] = asset(name, "js", await bundle(`${name}.ts`));

const languages = {};
try {
  for (const file of readdirSync(join(WEB, "src", "i18n")).sort()) {
    if (!file.endsWith(".json")) continue;
    const text = JSON.stringify(JSON.parse(readFileSync(join(WEB, "src", "i18n", file), "utf8")));
    languages[file.slice(0, -5)] = asset(file.slice(0, -5), "json", text).file;
  }
} catch (error) {
  if (error.code !== "ENOENT") throw error;
}

const files = Object.fromEntries(Object.entries(scripts).map(([name, { file }]) => [name, file]));
const script = (await bundle("main.ts", { ASSET_FILES: JSON.stringify({ ...files, languages }) })).trim();
const style = (await build({ ...OPTIONS, entryPoints: [join(WEB, "src", "style.css")] })).outputFiles[0].text.trim();
if (/<\/(?:script|style)/i.test(script + style)) throw new Error("The script or style would end its own element.");

// The integrity of what the page imports: the Content-Security-Policy lists the same hashes, so that no other script can
// run. The page is at …/chat, where the files are below chat/, or at …/chat/.
const integrity = {};
for (const { file, integrity: hash } of Object.values(scripts)) {
  integrity[`./chat/assets/${file}`] = hash;
  integrity[`./assets/${file}`] = hash;
}
const importMap = JSON.stringify({ integrity });

const template = readFileSync(join(WEB, "src", "index.html"), "utf8");
const body = template
  .replace(/>\s*\n\s*</g, "><")
  .replace(/\n\s*/g, " ")
  .trim();
const html = `${body}\n`
  .replace("<style></style>", () => `<style>${style}</style>`)
  .replace(
    '<script type="module"></script>',
    () => `<script type="importmap">${importMap}</script><script type="module">${script}</script>`,
  );
writeFileSync(join(PAGE, "chat.html"), html);

const size = gzipSync(html, { level: 9 }).length;
console.log(`chat.html: ${html.length} characters, ${size} bytes compressed`);
if (size > FIRST_LOAD_LIMIT) throw new Error(`The first load is ${size} bytes, more than ${FIRST_LOAD_LIMIT}.`);

const listed = (folder) =>
  readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
const sources = [...listed(join(WEB, "src")), join(WEB, "build.mjs"), join(WEB, "package-lock.json")];
const hashes = (paths, root) =>
  Object.fromEntries(paths.map((path) => [relative(root, path), sha256(readFileSync(path), "hex")]));
const manifest = { sources: hashes(sources, WEB), outputs: hashes([join(PAGE, "chat.html"), ...listed(ASSETS)], PAGE) };
writeFileSync(join(PAGE, "build.json"), `${JSON.stringify(manifest, null, 1)}\n`);
