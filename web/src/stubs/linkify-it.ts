/** Stands in for linkify-it, which markdown-it imports and the page does not use: `inline.ts` finds bare addresses. */
// eslint-disable-next-line @typescript-eslint/no-extraneous-class
export class LinkifyIt {}
