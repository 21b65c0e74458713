/** The conversations on the device, their export and import. */
import "fake-indexeddb/auto";

import { beforeEach, describe, expect, test } from "vitest";

import { addTurn, newConversation, path, type Conversation } from "../src/conversation";
import { DeviceStore, matches } from "../src/store";
import { exportJson, exportMarkdown, fileName, importJson, importMarkdown } from "../src/transfer";

const LABELS = { user: "You", assistant: "Answer" };

function talk(question: string, answer: string, at = 1000): Conversation {
  const conversation = newConversation();
  const turn = addTurn(conversation, null, { role: "user", text: question });
  addTurn(conversation, turn, { role: "assistant", text: answer, state: "done" });
  conversation.updatedAt = at;
  return conversation;
}

const shown = (conversation: Conversation): string[] => path(conversation).map((turn) => turn.text);

describe("the device", () => {
  let store: DeviceStore;
  let count = 0;
  beforeEach(() => {
    store = new DeviceStore(`test-${count++}`);
  });

  test("keeps conversations, pinned ones first and then the latest", async () => {
    const [old, pinned, late] = [talk("old", "a", 1), talk("pinned", "b", 2), talk("late", "c", 3)];
    pinned.pinned = true;
    for (const each of [old, pinned, late]) await store.save(each);
    expect((await store.list()).map((each) => each.title)).toEqual(["pinned", "late", "old"]);
    expect(await store.load(old.id)).toEqual(old);
    expect(await store.load("missing")).toBeNull();
  });

  test("removes one or all", async () => {
    const [a, b] = [talk("a", "1"), talk("b", "2")];
    await store.save(a);
    await store.save(b);
    await store.remove(a.id);
    expect((await store.list()).map((each) => each.title)).toEqual(["b"]);
    await store.clear();
    expect(await store.list()).toEqual([]);
  });

  test("keeps what another tab has added", async () => {
    const ours = talk("a", "1");
    await store.save(ours);
    const theirs = structuredClone(ours);
    addTurn(theirs, theirs.turns[1]!, { role: "user", text: "theirs" });
    await store.save(theirs);
    addTurn(ours, ours.turns[1]!, { role: "user", text: "ours" });
    await store.save(ours);
    expect((await store.load(ours.id))!.turns.map((turn) => turn.text).sort()).toEqual(["1", "a", "ours", "theirs"]);
  });

  test("damaged entries are left out of the list", async () => {
    const good = talk("good", "1");
    await store.save(good);
    const database = await new Promise<IDBDatabase>((resolve) => {
      const request = indexedDB.open(`test-${count - 1}`, 1);
      request.onsuccess = () => resolve(request.result);
    });
    const transaction = database.transaction("conversations", "readwrite");
    for (const bad of [
      { id: "x" },
      { id: "y", turns: [1] },
      { id: "z", format: 99, turns: [{ role: "user", text: "later" }] },
    ])
      transaction.objectStore("conversations").put(bad);
    await new Promise((resolve) => (transaction.oncomplete = resolve));
    expect((await store.list()).map((each) => each.title)).toEqual(["good"]);
  });

  test("a search finds all words, in titles and texts", () => {
    const conversation = talk("How do I brew Coffee?", "With hot WATER.");
    expect(matches(conversation, "coffee water")).toBe(true);
    expect(matches(conversation, " ")).toBe(true);
    expect(matches(conversation, "coffee tea")).toBe(false);
  });
});

describe("export and import", () => {
  test("JSON keeps every version", () => {
    const conversation = talk("a", "1");
    addTurn(conversation, conversation.turns[0]!, { role: "assistant", text: "2", state: "done" });
    const { conversations, damaged } = importJson(exportJson([conversation, talk("b", "3")]));
    expect(damaged).toBe(0);
    expect(conversations.map((each) => each.title)).toEqual(["a", "b"]);
    expect(conversations[0]!.turns.map((turn) => turn.text)).toEqual(["a", "1", "2"]);
    expect(conversations[0]!.id).not.toBe(conversation.id);
  });

  test.each([
    ["", 0, 0],
    ["{", 0, 0],
    ["null", 0, 1],
    ["[]", 0, 0],
    ['{"conversations": [null, {"turns": [{"role": "user", "text": "x"}]}, 5]}', 1, 2],
    ['{"turns": [{"role": "user", "text": "x"}]}', 1, 0],
    ['{"__proto__": {"polluted": true}, "turns": [{"role": "user", "text": "x"}]}', 1, 0],
  ])("%j has %i conversations and %i damaged entries", (text, count, damaged) => {
    const imported = importJson(text);
    expect([imported.conversations.length, imported.damaged]).toEqual([count, damaged]);
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  });

  test("Markdown keeps what is shown", () => {
    const conversation = talk("What is\n\n## a heading?", "```\n## You\n```\n\nText.");
    conversation.instructions = "Be brief.\nIn German.";
    const text = exportMarkdown(conversation, LABELS);
    expect(text).toContain("# What is\n");
    const [imported] = importMarkdown(text, LABELS).conversations;
    expect(shown(imported!)).toEqual(shown(conversation));
    expect(imported!.instructions).toBe(conversation.instructions);
    expect(importMarkdown("no turns", LABELS).conversations).toEqual([]);
  });

  test("file names have no signs that a file system takes for its own", () => {
    expect(fileName('../a/b: "c"', "md")).toBe("ab c.md");
    expect(fileName("…", "md")).toBe("chat.md");
  });
});
