/** Conversations as trees: a retry adds a variant of an answer, an edit a branch, and nothing is removed. */

export type Role = "user" | "assistant";
export type State = "connecting" | "thinking" | "streaming" | "done" | "stopped" | "failed";

export const UNFINISHED: readonly State[] = ["connecting", "thinking", "streaming"];

/** The version of the stored format; a later one is left alone. */
export const FORMAT = 2;

export interface Picture {
  /** A data URL of a PNG, JPEG, WebP or GIF. */
  readonly url: string;
  readonly name: string;
}

export interface Problem {
  status?: number;
  code?: string;
  title: string;
  detail?: string;
  errors?: { field?: string; message?: string }[];
  request_id?: string;
  retry_after?: number;
  /** Milliseconds since the epoch. */
  retryAt?: number;
  content_filter?: unknown;
}

export interface Metrics {
  /** Seconds. */
  firstToken?: number;
  total?: number;
  thought?: number;
  tokens?: number;
  model?: string;
}

export interface Turn {
  readonly id: string;
  readonly parent: string | null;
  readonly role: Role;
  text: string;
  pictures?: Picture[];
  reasoning?: string;
  state?: State;
  note?: "reloaded";
  /** The id of the last event of an answer that can be resumed. */
  resume?: string;
  metrics?: Metrics;
  problem?: Problem;
  finish?: string | null;
  filter?: unknown;
}

export interface Conversation {
  readonly format: number;
  readonly id: string;
  title: string;
  /** The title was given by the user. */
  named: boolean;
  pinned: boolean;
  /** Milliseconds since the epoch. */
  createdAt: number;
  updatedAt: number;
  instructions: string;
  model: string;
  turns: Turn[];
  /** The id of the child that is shown below each turn; "" stands for the start. */
  chosen: Record<string, string>;
}

export const newId = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function newConversation(from?: Conversation): Conversation {
  const now = Date.now();
  return {
    format: FORMAT,
    id: newId(),
    title: "",
    named: false,
    pinned: false,
    createdAt: now,
    updatedAt: now,
    instructions: from?.instructions ?? "",
    model: from?.model ?? "",
    turns: [],
    chosen: {},
  };
}

/** The turns below this one, oldest first; null: the first turns. */
export function childrenOfTurn(conversation: Conversation, parent: string | null): Turn[] {
  return conversation.turns.filter((turn) => turn.parent === parent);
}

/** The turns that are shown, from the first to the last. */
export function path(conversation: Conversation): Turn[] {
  const children = groupByParent(conversation.turns);
  const shown: Turn[] = [];
  for (let parent: string | null = null; ;) {
    const below: Turn[] = children.get(parent) ?? [];
    const next: Turn | undefined = below.find((turn) => turn.id === conversation.chosen[parent ?? ""]) ?? below.at(-1);
    if (!next || shown.includes(next)) return shown;
    shown.push(next);
    parent = next.id;
  }
}

function groupByParent(turns: readonly Turn[]): Map<string | null, Turn[]> {
  const groups = new Map<string | null, Turn[]>();
  for (const turn of turns) {
    const group = groups.get(turn.parent);
    if (group) group.push(turn);
    else groups.set(turn.parent, [turn]);
  }
  return groups;
}

/** All versions of this turn, itself among them. */
export const variants = (conversation: Conversation, turn: Turn): Turn[] => childrenOfTurn(conversation, turn.parent);

export function choose(conversation: Conversation, turn: Turn): void {
  conversation.chosen[turn.parent ?? ""] = turn.id;
}

/** Adds a turn below `parent` and shows it. */
export function addTurn(conversation: Conversation, parent: Turn | null, fields: Omit<Turn, "id" | "parent">): Turn {
  const turn: Turn = { id: newId(), parent: parent?.id ?? null, ...fields };
  conversation.turns.push(turn);
  choose(conversation, turn);
  if (!conversation.named && !conversation.title && turn.role === "user") conversation.title = titleOf(turn.text);
  return turn;
}

export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.replace(/\s+/g, " ");
  return line.length > 80 ? `${line.slice(0, 79).trimEnd()}…` : line;
}

/** Removes an answer that has no text, such as a failure that is retried: it holds nothing to lose. */
export function dropEmptyAnswer(conversation: Conversation, turn: Turn): boolean {
  if (turn.role !== "assistant" || turn.text || turn.reasoning || childrenOfTurn(conversation, turn.id).length)
    return false;
  conversation.turns = conversation.turns.filter((each) => each !== turn);
  if (conversation.chosen[turn.parent ?? ""] === turn.id) {
    conversation.chosen = Object.fromEntries(Object.entries(conversation.chosen).filter(([, id]) => id !== turn.id));
  }
  return true;
}

/** The problems after which a question is not sent again: the model refused it, or it did not fit. */
const REFUSED: readonly (string | undefined)[] = ["content_filter", "context_length_exceeded", "body_too_large"];

/** Whether this question is left out of later requests. */
export function isRefused(conversation: Conversation, turn: Turn): boolean {
  if (turn.role !== "user") return false;
  const answers = childrenOfTurn(conversation, turn.id);
  const answer = answers.find((each) => each.id === conversation.chosen[turn.id]) ?? answers.at(-1);
  return answer !== undefined && !answer.text && REFUSED.includes(answer.problem?.code);
}

export type InputPart = { type: "input_text"; text: string } | { type: "input_image"; image_url: string };
export interface InputMessage {
  role: Role;
  content: string | InputPart[];
}

/** The messages of a request: what is shown, down to `last`, without refused questions and empty answers. */
export function inputOf(conversation: Conversation, last?: Turn): InputMessage[] {
  const shown = path(conversation);
  const end = last ? shown.indexOf(last) + 1 : shown.length;
  return shown
    .slice(0, end)
    .filter((turn) => (turn.text || turn.pictures?.length) && (turn === last || !isRefused(conversation, turn)))
    .map(({ role, text, pictures }) =>
      role === "user" && pictures?.length
        ? {
            role,
            content: [
              ...(text ? [{ type: "input_text" as const, text }] : []),
              ...pictures.map(({ url }) => ({ type: "input_image" as const, image_url: url })),
            ],
          }
        : { role, content: text },
    );
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const string = (value: unknown, limit = Infinity): string => (typeof value === "string" ? value.slice(0, limit) : "");
const number = (value: unknown, otherwise: number): number =>
  typeof value === "number" && Number.isFinite(value) ? value : otherwise;
const PICTURE = /^data:image\/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/;

/** A conversation out of stored or imported data, which may be damaged or hostile; null when nothing of it can be used. */
export function parseConversation(data: unknown): Conversation | null {
  if (!isObject(data) || !Array.isArray(data["turns"]) || number(data["format"], 1) > FORMAT) return null;
  const now = Date.now();
  const turns: Turn[] = [];
  const ids = new Set<string>();
  let previous: string | null = null;
  for (const value of data["turns"]) {
    const turn = parseTurn(value, previous, ids, "format" in data);
    if (!turn || ids.has(turn.id)) continue;
    turns.push(turn);
    ids.add(turn.id);
    previous = turn.id;
  }
  const chosen: Record<string, string> = {};
  if (isObject(data["chosen"])) {
    for (const turn of turns) {
      const key = turn.parent ?? "";
      if (Object.hasOwn(data["chosen"], key) && data["chosen"][key] === turn.id) chosen[key] = turn.id;
    }
  }
  const createdAt = number(data["createdAt"], now);
  const conversation: Conversation = {
    format: FORMAT,
    id: /^[0-9a-f]{24}$/.test(string(data["id"])) ? string(data["id"]) : newId(),
    title: string(data["title"], 200),
    named: data["named"] === true,
    pinned: data["pinned"] === true,
    createdAt,
    updatedAt: number(data["updatedAt"], createdAt),
    instructions: string(data["instructions"]),
    model: string(data["model"], 200),
    turns,
    chosen,
  };
  if (!conversation.title) conversation.title = titleOf(turns.find((turn) => turn.role === "user")?.text ?? "");
  return turns.length || conversation.instructions || conversation.model ? conversation : null;
}

function parseTurn(value: unknown, previous: string | null, ids: ReadonlySet<string>, hasFormat: boolean): Turn | null {
  if (!isObject(value) || typeof value["text"] !== "string" || !["user", "assistant"].includes(string(value["role"])))
    return null;
  const parent = value["parent"];
  const turn: Turn = {
    id: /^[0-9a-f]{24}$/.test(string(value["id"])) ? string(value["id"]) : newId(),
    // A turn whose parent is missing goes on below the one before it. The first format was a list.
    parent: hasFormat && (parent === null || (typeof parent === "string" && ids.has(parent))) ? parent : previous,
    role: value["role"] as Role,
    text: value["text"],
  };
  if (turn.role === "user") {
    const pictures = Array.isArray(value["pictures"])
      ? value["pictures"]
          .filter(isObject)
          .map((each) => ({ url: string(each["url"]), name: string(each["name"], 200) }))
      : [];
    const valid = pictures.filter(({ url }) => PICTURE.test(url));
    return valid.length ? { ...turn, pictures: valid } : turn;
  }
  const state = string(value["state"]) as State;
  turn.state = ["done", "stopped", "failed"].includes(state) ? state : UNFINISHED.includes(state) ? "stopped" : "done";
  if (UNFINISHED.includes(state) || value["note"] !== undefined) turn.note = "reloaded";
  if (UNFINISHED.includes(state) && isEventId(string(value["resume"]))) turn.resume = string(value["resume"]);
  if (string(value["reasoning"])) turn.reasoning = string(value["reasoning"]);
  if (value["finish"] !== undefined) turn.finish = string(value["finish"], 40);
  if (value["filter"] !== undefined) turn.filter = value["filter"];
  if (isObject(value["metrics"])) {
    const given = value["metrics"];
    turn.metrics = { model: string(given["model"], 200) || undefined };
    for (const key of ["firstToken", "total", "thought", "tokens"] as const)
      if (typeof given[key] === "number") turn.metrics[key] = given[key];
  }
  if (isObject(value["problem"])) turn.problem = parseProblem(value["problem"]);
  else if (turn.state === "failed") turn.problem = { title: "" };
  return turn;
}

/** Whether this can be the path of a request: an event's id. */
export const isEventId = (text: string): boolean => /^[A-Za-z0-9_-]{1,256}\.[0-9]{1,18}$/.test(text);

/** A problem out of a response or stored data. */
export function parseProblem(value: Record<string, unknown>): Problem {
  const problem: Problem = { title: string(value["title"], 500) };
  for (const key of ["code", "detail", "request_id"] as const)
    if (string(value[key])) problem[key] = string(value[key], 4000);
  for (const key of ["status", "retry_after", "retryAt"] as const)
    if (typeof value[key] === "number") problem[key] = value[key];
  if (Array.isArray(value["errors"]))
    problem.errors = value["errors"]
      .slice(0, 20)
      .filter(isObject)
      .map((each) => ({ field: string(each["field"], 200), message: string(each["message"], 1000) }));
  if (value["content_filter"] !== undefined) problem.content_filter = value["content_filter"];
  return problem;
}

/** Both versions of one conversation: each turn that one of them has, since another tab may have added some. */
export function merged(ours: Conversation, stored: Conversation | null): Conversation {
  if (!stored) return ours;
  const ids = new Set(ours.turns.map((turn) => turn.id));
  const others = stored.turns.filter((turn) => !ids.has(turn.id) && (turn.text || turn.role === "user"));
  return others.length
    ? { ...ours, turns: [...ours.turns, ...others], chosen: { ...stored.chosen, ...ours.chosen } }
    : ours;
}
