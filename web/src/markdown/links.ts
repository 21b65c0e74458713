/** Which addresses of a model's text become links. */

/** Returns the normalized URL if it is absolute and its scheme cannot run a script, otherwise null. */
export function safeUrl(text: string): string | null {
  const url = URL.parse ? URL.parse(text) : parseUrl(text);
  return url && ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

function parseUrl(text: string): URL | null {
  try {
    return new URL(text);
  } catch {
    return null;
  }
}

/** One bare address in a text: where it is, and what it leads to. */
export interface BareAddress {
  readonly start: number;
  readonly end: number;
  readonly href: string;
}

const BARE = /(?:https?:\/\/|www\.)[^\s<>\\`|]{1,2000}|[\w.+-]{1,64}@[A-Za-z0-9][\w-]{0,62}(?:\.[\w-]{1,63}){1,8}/gu;

/** Bare web and mail addresses, GFM's autolinks (extension): https://github.github.com/gfm/#autolinks-extension- */
export function bareAddresses(text: string): BareAddress[] {
  const found: BareAddress[] = [];
  if (!/[:@]|www\./.test(text)) return found;
  for (const match of text.matchAll(BARE)) {
    const start = match.index;
    let address = match[0];
    if (start > 0 && /[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}\p{N}_/.+-]/u.test(text[start - 1]!))
      continue;
    if (/^[hw]/.test(address) && /^(?:https?:\/\/|www\.)/.test(address)) {
      // CJK text follows an address without a space.
      address = trimEnd(address.replace(/[\u3000-\u303f\uff00-\uffef\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af].*$/u, ""));
      if (!/^(?:https?:\/\/[^/?#]|www\.[^/?#]*\.[^/?#.])/.test(address)) continue;
      const href = safeUrl(address.startsWith("www.") ? `http://${address}` : address);
      if (href) found.push({ start, end: start + address.length, href });
    } else {
      address = address.replace(/\.+$/, "");
      if (/[-_]$/.test(address) || !/@[^@]*\./.test(address)) continue;
      found.push({ start, end: start + address.length, href: `mailto:${address}` });
    }
  }
  return found;
}

/** Removes punctuation that ends the sentence, not the address. */
function trimEnd(address: string): string {
  let text = address;
  for (let rounds = 0; rounds < 20; rounds += 1) {
    const shorter = text.replace(/[?!.,:*_~'"]{1,20}$/, "").replace(/&[a-z0-9]{1,31};$/i, "");
    const trimmed =
      shorter.endsWith(")") && count(shorter, ")") > count(shorter, "(")
        ? shorter.slice(0, -1)
        : shorter.replace(/[;\]]$/, "");
    if (trimmed === text) return text;
    text = trimmed;
  }
  return text;
}

const count = (text: string, char: string): number => text.split(char).length - 1;
