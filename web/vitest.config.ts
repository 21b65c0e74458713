import { fileURLToPath } from "node:url";

import { defineConfig } from "vitest/config";

const stub = (name: string): string => fileURLToPath(new URL(`src/stubs/${name}.ts`, import.meta.url));

export default defineConfig({
  resolve: {
    alias: {
      "linkify-it": stub("linkify-it"),
      mdurl: stub("mdurl"),
      "punycode.js": stub("punycode"),
      entities: stub("entities"),
    },
  },
  test: {
    include: ["test/**/*.test.ts"],
    server: { deps: { inline: ["markdown-it"] } },
    pool: "threads",
    maxWorkers: 1,
    isolate: false,
  },
});
