/** Stands in for punycode.js, which markdown-it imports and the page does not use. */
export default {};
