/** Stands in for mdurl, which markdown-it imports and the page does not use: `links.ts` replaces its URL functions. */
export function parse(): never {
  throw new Error("not used");
}
export const encode = parse;
export const decode = parse;
export const format = parse;
