/** Export and import of conversations. */

import { FORMAT, newId, parseConversation, path, type Conversation } from "./conversation";

const KIND = "relay-chat";

/** All of the conversations, with every variant, as a JSON file that `importJson` reads. */
export function exportJson(conversations: readonly Conversation[]): string {
  return `${JSON.stringify({ kind: KIND, format: FORMAT, conversations }, null, 1)}\n`;
}

/** What is shown of a conversation, as Markdown. */
export function exportMarkdown(conversation: Conversation, labels: { user: string; assistant: string }): string {
  const parts = [`# ${conversation.title.replace(/\s+/g, " ")}`];
  if (conversation.instructions.trim()) parts.push(conversation.instructions.trim().replace(/^/gm, "> "));
  for (const turn of path(conversation)) {
    parts.push(`## ${turn.role === "user" ? labels.user : labels.assistant}`);
    for (const picture of turn.pictures ?? [])
      parts.push(`![${picture.name.replace(/[[\]\\]/g, "\\$&")}](${picture.url})`);
    if (turn.text) parts.push(turn.text);
  }
  return `${parts.join("\n\n")}\n`;
}

export interface Imported {
  readonly conversations: Conversation[];
  /** How many entries of the file could not be read. */
  readonly damaged: number;
}

/** The conversations of an exported file; each gets an id of its own, so that nothing stored is overwritten. */
export function importJson(text: string): Imported {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    return { conversations: [], damaged: 0 };
  }
  const entries = Array.isArray(data)
    ? data
    : typeof data === "object" && data !== null && Array.isArray((data as { conversations?: unknown }).conversations)
      ? (data as { conversations: unknown[] }).conversations
      : [data];
  const conversations: Conversation[] = [];
  let damaged = 0;
  for (const entry of entries) {
    const conversation = parseConversation(entry);
    if (conversation?.turns.length) conversations.push({ ...conversation, id: newId() });
    else damaged += 1;
  }
  return { conversations, damaged };
}

/** A conversation out of exported Markdown; headings of level 2 with the labels separate its turns. */
export function importMarkdown(text: string, labels: { user: string; assistant: string }): Imported {
  const turns: { role: string; text: string }[] = [];
  let title = "";
  let instructions: string[] = [];
  let fence = "";
  for (const line of text.replace(/^\ufeff/, "").split(/\r?\n/)) {
    const marker = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (marker && !fence) fence = marker;
    else if (marker && marker.startsWith(fence) && /^ {0,3}[`~]+\s*$/.test(line)) fence = "";
    const heading = fence ? null : /^## (.*)$/.exec(line)?.[1];
    const role =
      heading === labels.user || heading === "You"
        ? "user"
        : heading === labels.assistant || heading === "Answer"
          ? "assistant"
          : null;
    if (role) turns.push({ role, text: "" });
    else if (turns.length) turns.at(-1)!.text += `${line}\n`;
    else if (!title && line.startsWith("# ")) title = line.slice(2).trim();
    else if (line.startsWith("> ")) instructions.push(line.slice(2));
  }
  for (const turn of turns) turn.text = turn.text.trim();
  if (!turns.length) instructions = [];
  const conversation = parseConversation({ title, named: title !== "", instructions: instructions.join("\n"), turns });
  return { conversations: conversation?.turns.length ? [conversation] : [], damaged: 0 };
}

/** A file name made of a title. */
export const fileName = (title: string, extension: string): string =>
  `${
    title
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .trim()
      .slice(0, 60) || "chat"
  }.${extension}`;
