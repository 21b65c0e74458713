/** Conversations: variants, branches, what is sent, and what damaged or hostile data becomes. */
import { describe, expect, test } from "vitest";

import {
  addTurn,
  choose,
  dropEmptyAnswer,
  FORMAT,
  inputOf,
  isRefused,
  merged,
  newConversation,
  parseConversation,
  path,
  titleOf,
  variants,
  type Conversation,
  type Turn,
} from "../src/conversation";

const texts = (turns: readonly Turn[]): string[] => turns.map((turn) => turn.text);

function talk(): { conversation: Conversation; question: Turn; answer: Turn } {
  const conversation = newConversation();
  const question = addTurn(conversation, null, { role: "user", text: "one" });
  const answer = addTurn(conversation, question, { role: "assistant", text: "first", state: "done" });
  return { conversation, question, answer };
}

describe("versions", () => {
  test("a retry adds a variant, and both can be shown", () => {
    const { conversation, question, answer } = talk();
    const second = addTurn(conversation, question, { role: "assistant", text: "second", state: "done" });
    expect(texts(path(conversation))).toEqual(["one", "second"]);
    expect(texts(variants(conversation, second))).toEqual(["first", "second"]);
    choose(conversation, answer);
    expect(texts(path(conversation))).toEqual(["one", "first"]);
  });

  test("an edit adds a branch, and the old one keeps its answers", () => {
    const { conversation, question, answer } = talk();
    const later = addTurn(conversation, answer, { role: "user", text: "two" });
    addTurn(conversation, null, { role: "user", text: "edited" });
    expect(texts(path(conversation))).toEqual(["edited"]);
    choose(conversation, question);
    expect(texts(path(conversation))).toEqual(["one", "first", "two"]);
    expect(later.parent).toBe(answer.id);
  });

  test("an answer without text is dropped, one with text or later turns is not", () => {
    const { conversation, question, answer } = talk();
    const failed = addTurn(conversation, question, { role: "assistant", text: "", state: "failed" });
    expect(dropEmptyAnswer(conversation, failed)).toBe(true);
    expect(texts(path(conversation))).toEqual(["one", "first"]);
    expect(dropEmptyAnswer(conversation, answer)).toBe(false);
    const thought = addTurn(conversation, question, { role: "assistant", text: "", reasoning: "hm", state: "failed" });
    expect(dropEmptyAnswer(conversation, thought)).toBe(false);
  });

  test("the title is the first line of the first question", () => {
    const { conversation } = talk();
    addTurn(conversation, null, { role: "user", text: "another" });
    expect(conversation.title).toBe("one");
    expect(titleOf(`\n  a   b\nc`)).toBe("a b");
    expect(titleOf("x".repeat(200)).length).toBe(80);
  });
});

describe("what is sent", () => {
  test("what is shown, down to the question", () => {
    const { conversation, question, answer } = talk();
    const next = addTurn(conversation, answer, { role: "user", text: "two" });
    addTurn(conversation, next, { role: "assistant", text: "x", state: "streaming" });
    expect(inputOf(conversation, next)).toEqual([
      { role: "user", content: "one" },
      { role: "assistant", content: "first" },
      { role: "user", content: "two" },
    ]);
    expect(inputOf(conversation, question)).toEqual([{ role: "user", content: "one" }]);
  });

  test.each(["content_filter", "context_length_exceeded", "body_too_large"])(
    "a question refused with %s is not sent again with later ones",
    (code) => {
      const { conversation, answer } = talk();
      const bad = addTurn(conversation, answer, { role: "user", text: "bad" });
      const refusal = addTurn(conversation, bad, {
        role: "assistant",
        text: "",
        state: "failed",
        problem: { code, title: "No" },
      });
      expect(isRefused(conversation, bad)).toBe(true);
      const good = addTurn(conversation, refusal, { role: "user", text: "good" });
      expect(inputOf(conversation, good).map(({ content }) => content)).toEqual(["one", "first", "good"]);
      expect(inputOf(conversation, bad).map(({ content }) => content)).toEqual(["one", "first", "bad"]);
    },
  );

  test("a question whose answer failed otherwise is sent again", () => {
    const { conversation, answer } = talk();
    const question = addTurn(conversation, answer, { role: "user", text: "two" });
    const failure = addTurn(conversation, question, {
      role: "assistant",
      text: "",
      state: "failed",
      problem: { code: "upstream_error", title: "No" },
    });
    const next = addTurn(conversation, failure, { role: "user", text: "three" });
    expect(inputOf(conversation, next).map(({ content }) => content)).toEqual(["one", "first", "two", "three"]);
  });

  test("pictures are parts of the content", () => {
    const conversation = newConversation();
    const url = "data:image/png;base64,AAAA";
    addTurn(conversation, null, { role: "user", text: "what is it?", pictures: [{ url, name: "a.png" }] });
    expect(inputOf(conversation)).toEqual([
      {
        role: "user",
        content: [
          { type: "input_text", text: "what is it?" },
          { type: "input_image", image_url: url },
        ],
      },
    ]);
  });
});

describe("stored data", () => {
  test("is the same after it was stored", () => {
    const { conversation, question } = talk();
    addTurn(conversation, question, {
      role: "assistant",
      text: "",
      state: "failed",
      problem: { code: "x", title: "T", status: 500, errors: [{ field: "a", message: "b" }] },
    });
    expect(parseConversation(JSON.parse(JSON.stringify(conversation)))).toEqual(conversation);
  });

  test("the first format, a list, becomes a conversation", () => {
    const old = {
      turns: [
        { role: "user", text: "a" },
        { role: "assistant", text: "b", state: "done" },
        { role: "user", text: "c" },
        { role: "assistant", text: "d", state: "streaming" },
      ],
      instructions: "i",
      model: "m",
    };
    const conversation = parseConversation(old)!;
    expect(texts(path(conversation))).toEqual(["a", "b", "c", "d"]);
    expect(conversation).toMatchObject({ format: FORMAT, title: "a", instructions: "i", model: "m" });
    expect(path(conversation).at(-1)).toMatchObject({ state: "stopped", note: "reloaded" });
  });

  test.each([
    null,
    undefined,
    1,
    "x",
    [],
    {},
    { turns: 1 },
    { turns: [] },
    { turns: [null, 1, { role: "user" }, { role: "tool", text: "x" }] },
    { format: FORMAT + 1, turns: [{ role: "user", text: "from a later version" }] },
  ])("%j is no conversation", (data) => {
    expect(parseConversation(data)).toBeNull();
  });

  test("what can be read of damaged data is kept", () => {
    const data = {
      format: 2,
      id: "../../x",
      title: 5,
      pinned: "yes",
      createdAt: "now",
      chosen: { __proto__: null, "": "missing", constructor: "x" },
      turns: [
        {
          id: "0".repeat(24),
          parent: null,
          role: "user",
          text: "kept",
          pictures: [
            { url: "https://evil.example/x.png" },
            { url: "data:image/svg+xml;base64,AAAA" },
            { url: "javascript:alert(1)" },
            1,
          ],
        },
        { id: "0".repeat(24), parent: null, role: "user", text: "the same id" },
        {
          id: "1".repeat(24),
          parent: "f".repeat(24),
          role: "assistant",
          text: "its parent is missing",
          state: "thinking",
          metrics: { tokens: "x", total: 2 },
          problem: 3,
        },
        { id: "2".repeat(24), parent: "2".repeat(24), role: "user", text: "its own parent" },
      ],
    };
    const conversation = parseConversation(data)!;
    expect(texts(path(conversation))).toEqual(["kept", "its parent is missing", "its own parent"]);
    expect(conversation.id).toMatch(/^[0-9a-f]{24}$/);
    expect(conversation.turns[0]!.pictures).toBeUndefined();
    expect(conversation.turns[1]).toMatchObject({ state: "stopped", note: "reloaded", metrics: { total: 2 } });
    expect(conversation.pinned).toBe(false);
    expect(Number.isFinite(conversation.updatedAt)).toBe(true);
  });

  test("two versions of a conversation are one with the turns of both", () => {
    const { conversation, answer } = talk();
    const stored = structuredClone(conversation);
    addTurn(stored, answer, { role: "user", text: "from another tab" });
    addTurn(conversation, answer, { role: "user", text: "ours" });
    const both = merged(conversation, stored);
    expect(texts(both.turns)).toEqual(["one", "first", "ours", "from another tab"]);
    expect(texts(path(both))).toEqual(["one", "first", "ours"]);
    expect(merged(conversation, null)).toBe(conversation);
    expect(parseConversation(JSON.parse(JSON.stringify(both)))).toEqual(both);
  });
});
