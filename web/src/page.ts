/** The chat page: the conversation that is shown, the request in progress, and what the user can do. */

import { loadLanguage, siblingUrl } from "./assets";
import { readConfig, type Config } from "./config";
import {
  addTurn,
  choose,
  dropEmptyAnswer,
  inputOf,
  isEventId,
  isRefused,
  newConversation,
  parseConversation,
  path,
  UNFINISHED,
  variants,
  type Conversation,
  type Picture,
  type Problem,
  type State,
  type Turn,
} from "./conversation";
import { History } from "./history";
import { currentLanguage, preferredLanguage, t, useLanguage, type Language } from "./i18n";
import type { Labels } from "./markdown/blocks";
import { PictureTray } from "./pictures";
import { pageProblem, readProblem, withTexts } from "./problems";
import { serverSentEvents } from "./sse";
import { DeviceStore, readPreferences, TabStorage, writePreferences } from "./store";
import { $, announce, copyText, createButton, createElement, createIconButton, fitHeight, icon } from "./ui";
import { MarkdownView } from "./view";

const PAGE_PATH = location.pathname.replace(/\/+$/, "");
const tab = new TabStorage(PAGE_PATH);
const device = new DeviceStore(`relay-chat:${PAGE_PATH}`);
const preferences = readPreferences(PAGE_PATH);
const config: Config = readConfig();

let conversation = newConversation();
let functionKey = tab.read("key") ?? "";

interface Running {
  readonly controller: AbortController;
  readonly conversation: Conversation;
  readonly turn: Turn;
  readonly startedAt: number;
  /** When anything was received, a comment too; and when the last text was. Milliseconds of `performance.now()`. */
  lastReceivedAt: number;
  lastTextAt: number;
  /** The connection was lost, and the answer goes on over another one. */
  resuming: boolean;
  discarded: boolean;
}
let running: Running | null = null;

/* ── Storage ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

let saveTimer = 0;
let savedOnDevice = true;

function save(): void {
  clearTimeout(saveTimer);
  saveTimer = 0;
  const used = conversation.turns.length || conversation.instructions || conversation.model;
  let inTab = tab.write("chat", used ? JSON.stringify(conversation) : "");
  if (preferences.keep && conversation.turns.length) {
    const saved = conversation;
    device.save(saved).then(
      () => {
        savedOnDevice = true;
        if (!inTab && saved === conversation) {
          inTab = tab.write(
            "chat",
            JSON.stringify({
              ...saved,
              turns: saved.turns.map((turn) => ({ ...turn, pictures: undefined })),
              onDevice: true,
            }),
          );
        }
        showStorageWarning(false);
      },
      (error: unknown) => {
        if (savedOnDevice) console.info("The conversation cannot be kept on this device.", error);
        savedOnDevice = false;
        showStorageWarning(!inTab);
      },
    );
  } else showStorageWarning(!inTab);
}

function showStorageWarning(shown: boolean): void {
  if ($("storage-warning").hidden === shown) $("storage-warning").hidden = !shown;
}

const saveSoon = (): void => {
  saveTimer ||= window.setTimeout(save, 500);
};

function touch(): void {
  conversation.updatedAt = Date.now();
}

/** Shows what this tab showed before; damaged data is ignored. */
function restore(): void {
  try {
    const data: unknown = JSON.parse(tab.read("chat") ?? "null");
    const stored = parseConversation(data);
    if (!stored) return;
    conversation = stored;
    if (preferences.keep && (data as { onDevice?: unknown }).onDevice === true) {
      void device.load(stored.id).then((whole) => {
        if (whole && conversation === stored && !running) {
          conversation = whole;
          showConversation();
        }
      }, console.info);
    }
  } catch (error) {
    console.info("The stored conversation cannot be read; the page starts with an empty one.", error);
  }
}

/* ── Showing turns ───────────────────────────────────────────────────────────────────────────────────────────────── */

interface TurnView {
  readonly section: HTMLElement;
  readonly bubble?: HTMLElement;
  readonly root?: HTMLElement;
  readonly markdown?: MarkdownView;
  readonly reasoning?: ReasoningView;
  readonly status?: HTMLElement;
  readonly after?: HTMLElement;
}
const views = new WeakMap<Turn, TurnView>();

const labels: Labels = {
  get copy() {
    return t("copy");
  },
  get code() {
    return t("code");
  },
  get table() {
    return t("table");
  },
  get done() {
    return t("done");
  },
  get notDone() {
    return t("notDone");
  },
  codeIn: (language) => t("codeIn", { language }),
};

/** The page scrolls along with the answer until the user scrolls up. */
let autoScroll = true,
  lastScroll = 0;
const distanceFromBottom = (): number => document.documentElement.scrollHeight - innerHeight - scrollY;
function scrollToLatest(): void {
  if (autoScroll) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  $("jump").hidden = autoScroll || distanceFromBottom() < 120;
}
addEventListener(
  "scroll",
  () => {
    if (distanceFromBottom() < 48) autoScroll = true;
    else if (scrollY < lastScroll - 2) autoScroll = false;
    lastScroll = scrollY;
    $("jump").hidden = autoScroll || distanceFromBottom() < 120;
    document.documentElement.classList.toggle("scrolled", scrollY > 8);
  },
  { passive: true },
);
addEventListener("resize", scrollToLatest);
document.addEventListener("formulas", scrollToLatest);
$("jump").addEventListener("click", () => {
  autoScroll = true;
  scrollToLatest();
  focusComposer();
});

/** The model's reasoning, folded above its answer. */
class ReasoningView {
  readonly element = createElement("details", { className: "reasoning", hidden: true });
  private readonly summary = createElement("summary", {}, t("thoughts"));
  private readonly root = createElement("div", { className: "thoughts", lang: "" });
  private readonly markdown = new MarkdownView(this.root, labels, scrollToLatest);

  constructor() {
    this.element.append(this.summary, this.root);
  }

  append(text: string): void {
    this.element.hidden = false;
    this.markdown.append(text);
  }

  finish(seconds: number | undefined): void {
    if (this.element.hidden) return;
    this.markdown.finish();
    if (seconds !== undefined) this.summary.textContent = t("thoughtFor", { n: formatNumber(seconds) });
  }
}

const FOLD_CHARACTERS = 1200,
  FOLD_LINES = 14;

function showTurn(turn: Turn): void {
  const section = createElement("section", { className: `turn ${turn.role === "user" ? "user" : "answer"}` });
  section.append(createElement("h2", { className: "visually-hidden" }, t(turn.role === "user" ? "you" : "answer")));
  $("conversation").append(section);
  $("welcome").hidden = true;
  if (turn.role === "user") {
    showQuestion(section, turn);
    return;
  }
  const root = createElement("div", { className: "markdown", lang: "" });
  const reasoning = new ReasoningView();
  const view = {
    section,
    root,
    reasoning,
    markdown: new MarkdownView(root, labels, scrollToLatest),
    status: createElement("div", { className: "status" }),
    after: createElement("div"),
  };
  section.append(reasoning.element, root, view.status, view.after);
  views.set(turn, view);
  if (turn.reasoning) reasoning.append(turn.reasoning);
  if (turn.text) view.markdown.append(turn.text);
  refreshAnswer(turn);
}

function showQuestion(section: HTMLElement, turn: Turn): void {
  const bubble = createElement("div", { className: "bubble", dir: "auto", lang: "" }, turn.text);
  if (turn.pictures?.length) {
    section.append(
      createElement(
        "div",
        { className: "pictures" },
        ...turn.pictures.map(({ url, name }) => createElement("img", { src: url, alt: name || t("picture") })),
      ),
    );
  }
  bubble.hidden = !turn.text;
  section.append(bubble);
  if (turn.text.length > FOLD_CHARACTERS || turn.text.split("\n").length > FOLD_LINES)
    section.append(foldButton(bubble));
  const toolbar = createElement(
    "div",
    { className: "toolbar" },
    versionSwitch(turn),
    createButton("ghost-button", t("edit"), "edit", () => editMessage(turn)),
  );
  section.append(toolbar);
  views.set(turn, { section, bubble });
}

/** Folds a long text, such as a pasted file. */
function foldButton(bubble: HTMLElement): HTMLElement {
  bubble.classList.add("folded");
  const button = createButton("ghost-button", t("showAll"), "chevron-down", () => {
    const folded = bubble.classList.toggle("folded");
    button.querySelector("span")!.textContent = t(folded ? "showAll" : "showLess");
    button.setAttribute("aria-expanded", String(!folded));
  });
  button.setAttribute("aria-expanded", "false");
  return button;
}

/** Switches between the versions of a question or an answer; null when there is one only. */
function versionSwitch(turn: Turn): HTMLElement | null {
  const all = variants(conversation, turn);
  const index = all.indexOf(turn);
  if (all.length < 2) return null;
  const go = (step: number, name: "previous" | "next"): HTMLElement => {
    const target = all[index + step];
    const button = createIconButton(t(name), step < 0 ? "previous" : "next", () => {
      if (!target || running) return;
      choose(conversation, target);
      touch();
      save();
      showFrom(target);
      views
        .get(target)
        ?.section.querySelector<HTMLElement>(`.versions button:${step < 0 ? "first" : "last"}-of-type`)
        ?.focus();
      announce(t("version", { n: index + step + 1, count: all.length }));
    });
    if (!target) button.setAttribute("aria-disabled", "true");
    return button;
  };
  return createElement(
    "span",
    { className: "versions" },
    go(-1, "previous"),
    createElement("span", {}, t("version", { n: index + 1, count: all.length })),
    go(1, "next"),
  );
}

function showConversation(): void {
  $("conversation").replaceChildren();
  const turns = path(conversation);
  $("welcome").hidden = turns.length > 0;
  turns.forEach(showTurn);
  document.title = conversation.title ? `${conversation.title} · ${config.name}` : config.name;
}

/** Shows the path from this turn on; the turns above it stay as they are. */
function showFrom(turn: Turn): void {
  const turns = path(conversation);
  const index = turns.indexOf(turn);
  const sections = [...$("conversation").children];
  for (const section of sections.slice(index)) section.remove();
  turns.slice(index).forEach(showTurn);
  $("welcome").hidden = turns.length > 0;
}

const formatNumber = (value: number): string => {
  const digits = value < 1 ? 2 : value < 10 ? 1 : 0;
  return value.toLocaleString(currentLanguage(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
};

function metricsLine(turn: Turn): HTMLElement {
  const line = createElement("div", { className: "metrics" });
  const { firstToken, total, tokens, model } = turn.metrics ?? {};
  if (firstToken !== undefined)
    line.append(createElement("span", {}, t("firstToken", { n: formatNumber(firstToken) })));
  if (tokens !== undefined)
    line.append(
      createElement(
        "span",
        {},
        tokens === 1 ? t("oneToken") : t("tokens", { n: tokens.toLocaleString(currentLanguage()) }),
      ),
    );
  if (total !== undefined) line.append(createElement("span", {}, t("total", { n: formatNumber(total) })));
  if (model) line.append(createElement("span", { dir: "ltr" }, model));
  return line;
}

const isUnfinished = (turn: Turn): boolean => UNFINISHED.includes(turn.state ?? "done");

/** Updates everything around the text of an answer to match its state. */
function refreshAnswer(turn: Turn): void {
  const { section, markdown, reasoning, status, after } = views.get(turn)!;
  const unfinished = isUnfinished(turn);
  section.classList.toggle("streaming", turn.state === "streaming");
  section.setAttribute("aria-busy", String(unfinished));
  status!.hidden = !unfinished || turn.state === "streaming";
  if (unfinished && !status!.firstChild) {
    status!.append(
      createElement(
        "span",
        { className: "typing-indicator", ariaHidden: "true" },
        createElement("i"),
        createElement("i"),
        createElement("i"),
      ),
      createElement("span", { className: "status-text" }),
    );
  }
  if (unfinished) {
    after!.replaceChildren();
    updateClock();
    return;
  }
  markdown!.finish();
  reasoning!.finish(turn.metrics?.thought);
  after!.replaceChildren(
    ...[noticeBox(turn), turn.problem ? failureBox(turn) : null, answerToolbar(turn)].filter((each) => each !== null),
  );
  markRefused(turn);
  updateClock();
  scrollToLatest();
}

/** Marks a question that was refused: it is not sent again. */
function markRefused(turn: Turn): void {
  const question = conversation.turns.find((each) => each.id === turn.parent);
  const view = question && views.get(question);
  if (!view) return;
  const refused = isRefused(conversation, question);
  view.section.classList.toggle("refused", refused);
  view.section.querySelector(".refused-note")?.remove();
  if (refused) view.bubble!.after(createElement("p", { className: "refused-note" }, t("refused")));
}

function noticeBox(turn: Turn): HTMLElement | null {
  const notice = (iconName: string, text: string, action?: HTMLElement): HTMLElement =>
    createElement(
      "div",
      { className: "notice" },
      icon(iconName),
      createElement("div", {}, text, action ? createElement("div", { className: "actions" }, action) : null),
    );
  const goOn = (): HTMLElement => createButton("action", t("continue"), "", () => ask(t("continueMessage")));
  if (turn.state === "stopped")
    return notice("stopped", t(turn.note === "reloaded" ? "reloaded" : "youStopped"), turn.text ? goOn() : undefined);
  if (turn.finish === "length") return notice("stopped", t("lengthLimit"), goOn());
  if (turn.finish === "content_filter")
    return notice("error", t("filterStopped", { categories: filterCategories(turn.filter) }));
  if (turn.state === "done" && !turn.text) return notice("stopped", t("empty"));
  return null;
}

function filterCategories(filter: unknown): string {
  const named = Array.isArray(filter)
    ? filter.map(String)
    : Object.entries((filter ?? {}) as Record<string, unknown>)
        .filter(([, value]) => value && ((value as { filtered?: boolean }).filtered ?? true))
        .map(([name]) => name);
  return named.length ? `: ${named.join(", ").replaceAll("_", " ")}` : "";
}

function answerToolbar(turn: Turn): HTMLElement {
  return createElement(
    "div",
    { className: "toolbar" },
    versionSwitch(turn),
    turn.text
      ? createButton(
          "ghost-button",
          t("copy"),
          "copy",
          (button) => void copyText(turn.text, button, { copied: t("copied"), failed: t("copyFailed") }),
        )
      : null,
    turn.problem ? null : createButton("ghost-button retry", t("retry"), "retry", () => retry(turn)),
    turn.text || !turn.problem ? metricsLine(turn) : null,
  );
}

type Action = "retry" | "key" | "reload" | "edit" | "new" | "default" | "continue";

/** The actions offered for each problem code; the title and detail shown above them come from the app. */
const ACTIONS_BY_CODE = new Map<string | undefined, Action[]>([
  ["key", ["key"]],
  ["sign_in", ["reload"]],
  ["rate_limited", ["retry"]],
  ["content_filter", ["edit"]],
  ["context_length_exceeded", ["new", "edit"]],
  ["body_too_large", ["new", "edit"]],
  ["model_not_found", ["default"]],
  ["invalid_request", ["edit", "new"]],
]);

function actionsFor(turn: Turn, problem: Problem): Action[] {
  if (problem.code === "model_not_found" && !conversation.model) return ["retry"];
  const status = problem.status ?? 0;
  const actions =
    ACTIONS_BY_CODE.get(problem.code) ??
    (status >= 400 && status < 500 && ![408, 409, 425].includes(status) ? ["edit", "retry"] : ["retry"]);
  return turn.text && actions.includes("retry") ? [...actions, "continue"] : actions;
}

function failureBox(turn: Turn): HTMLElement {
  const problem = turn.problem!;
  const question = conversation.turns.find((each) => each.id === turn.parent);
  const make: Record<Action, () => HTMLElement> = {
    retry: () =>
      Object.assign(
        createButton("action primary", t("retry"), "retry", () => retry(turn)),
        { id: "retry" },
      ),
    continue: () => createButton("action", t("continue"), "", () => ask(t("continueMessage"))),
    key: () => createButton("action primary", t("enterKey"), "", () => askForKey(problem.title)),
    reload: () => createButton("action primary", t("reload"), "", () => location.reload()),
    edit: () => createButton("action", t("editYourMessage"), "edit", () => question && editMessage(question)),
    new: () => createButton("action", t("startNewChat"), "new", startNewChat),
    default: () =>
      createButton("action primary", t("defaultModel"), "", () => {
        conversation.model = "";
        void loadModels();
        retry(turn);
      }),
  };
  const categories = problem.code === "content_filter" ? filterCategories(problem.content_filter) : "";
  const errors = problem.errors ?? [];
  return createElement(
    "div",
    { className: "failure" },
    createElement("h3", {}, icon("error"), turn.text ? t("interrupted", { title: problem.title }) : problem.title),
    problem.detail ? createElement("p", {}, problem.detail) : null,
    categories ? createElement("p", {}, t("categories", { categories })) : null,
    errors.length
      ? createElement(
          "ul",
          {},
          ...errors.map((each) => createElement("li", {}, [each.field, each.message].filter(Boolean).join(": "))),
        )
      : null,
    problem.request_id
      ? createElement("p", { className: "request-id" }, t("requestId", { id: problem.request_id }))
      : null,
    createElement("div", { className: "actions" }, ...actionsFor(turn, problem).map((name) => make[name]())),
  );
}

/** Updates what depends on the time: how long the model has been thinking, a stall, and the countdown to a retry. */
let clock = 0;
const STALL = 6; // seconds without text in the middle of an answer

function updateClock(): void {
  const turn = path(conversation).at(-1);
  const view = turn && views.get(turn);
  let keepTicking = false;
  if (running && view?.status && turn === running.turn) {
    const now = performance.now();
    const elapsed = Math.floor((now - running.startedAt) / 1000);
    const secondsSilent = (now - running.lastReceivedAt) / 1000;
    const secondsWithoutText = Math.floor((now - running.lastTextAt) / 1000);
    const stalled = turn.state === "streaming" && secondsWithoutText >= STALL;
    view.status.hidden = turn.state === "streaming" && !stalled && !running.resuming;
    const seconds = stalled ? secondsWithoutText : elapsed;
    const text = running.resuming
      ? t("resuming")
      : secondsSilent > 45
        ? t("silent")
        : stalled
          ? t("stalled")
          : t(turn.state === "connecting" ? "connecting" : "thinking");
    const label = text + (seconds >= 2 ? ` · ${t("seconds", { n: seconds.toLocaleString(currentLanguage()) })}` : "");
    const element = view.status.querySelector(".status-text");
    if (element && element.textContent !== label) element.textContent = label;
    keepTicking = true;
  }
  const retryButton = document.getElementById("retry");
  if (retryButton && turn?.problem?.retryAt) {
    const left = Math.ceil((turn.problem.retryAt - Date.now()) / 1000);
    const label =
      left > 90 ? t("retryInMinutes", { n: Math.ceil(left / 60) }) : left > 0 ? t("retryIn", { n: left }) : t("retry");
    if (retryButton.lastChild!.textContent !== label) {
      retryButton.lastChild!.textContent = label;
      if (left > 0) retryButton.setAttribute("aria-disabled", "true");
      else if (retryButton.getAttribute("aria-disabled")) {
        retryButton.removeAttribute("aria-disabled");
        announce(t("canRetry"));
      }
    }
    keepTicking ||= left > 0;
  }
  if (keepTicking) clock ||= window.setInterval(updateClock, 250);
  else {
    clearInterval(clock);
    clock = 0;
  }
}

/* ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────── */

const pictures = new PictureTray($("tray"), config, updateComposer);

function ask(text: string, parent: Turn | null = path(conversation).at(-1) ?? null, attached: Picture[] = []): void {
  if (running || (!text.trim() && !attached.length)) return;
  const turn = addTurn(conversation, parent, {
    role: "user",
    text,
    ...(attached.length ? { pictures: attached } : {}),
  });
  showFrom(turn);
  void streamAnswer(turn);
}

/** Asks again: what came stays as another version. */
function retry(turn: Turn): void {
  const question = conversation.turns.find((each) => each.id === turn.parent);
  if (running || !question) return;
  dropEmptyAnswer(conversation, turn);
  for (const section of [...$("conversation").children].slice(path(conversation).indexOf(question) + 1))
    section.remove();
  void streamAnswer(question);
}

function requestBody(question: Turn): string {
  const body: Record<string, unknown> = { input: inputOf(conversation, question) };
  if (conversation.instructions.trim()) body["instructions"] = conversation.instructions;
  if (conversation.model) body["model"] = conversation.model;
  const refused = refusedFields.get(conversation.model);
  if (config.reasoning && !refused?.has("reasoning_summary")) body["reasoning_summary"] = "auto";
  if (config.resumable && !refused?.has("resumable")) body["resumable"] = true;
  return JSON.stringify(body);
}

const requestHeaders = (other: Record<string, string> = {}): Record<string, string> =>
  functionKey ? { ...other, "x-functions-key": functionKey } : other;

/** What is asked for where the app takes it; a model that refuses a field is asked without it from then on. */
const refusedFields = new Map<string, Set<string>>();

/** Notes an optional field that the model refused; false when the problem is another one. */
function noteRefusedField(problem: Problem): boolean {
  const refused = refusedFields.get(conversation.model) ?? new Set();
  const named = (problem.errors ?? [])
    .map(({ field }) => field ?? "")
    .filter((field) => OPTIONAL_FIELDS.includes(field));
  const fresh = named.filter((field) => !refused.has(field));
  for (const field of fresh) refused.add(field);
  refusedFields.set(conversation.model, refused);
  return fresh.length > 0;
}
const OPTIONAL_FIELDS = ["reasoning_summary", "resumable"];

/** Asks the question, or goes on with an answer that can be resumed. */
async function streamAnswer(question: Turn, resumed?: Turn): Promise<void> {
  const turn =
    resumed ?? addTurn(conversation, question, { role: "assistant", text: "", state: "connecting", metrics: {} });
  const now = performance.now();
  const request: Running = {
    controller: new AbortController(),
    conversation,
    turn,
    startedAt: now,
    lastReceivedAt: now,
    lastTextAt: now,
    resuming: resumed !== undefined,
    discarded: false,
  };
  running = request;
  autoScroll = true;
  const setState = (state: State): void => {
    turn.state = state;
    if (views.has(turn) && request.conversation === conversation) refreshAnswer(turn);
  };
  if (resumed) setState("thinking");
  else showTurn(turn);
  setBusy(true);
  touch();
  save();
  if (document.activeElement === document.body) focusComposer(); // the button that was clicked may have been removed
  announce(t(resumed ? "resuming" : "messageSent"));
  scrollToLatest();
  const metrics = (turn.metrics ??= {});
  const problem = await receive(question, request, setState);
  if (!resumed) metrics.total = (performance.now() - request.startedAt) / 1000;
  if (request.discarded) return;
  running = null;
  delete turn.resume;
  if (problem && !request.controller.signal.aborted) turn.problem = problem;
  setBusy(false);
  setState(request.controller.signal.aborted ? "stopped" : turn.problem ? "failed" : "done");
  touch();
  save();
  announceResult(turn);
}

const MAX_RESUMPTIONS = 8; // in a row without anything new; with the pauses between them they take half a minute

/** Receives the answer, over several connections where it can be resumed; returns what went wrong. */
async function receive(
  question: Turn,
  request: Running,
  setState: (state: State) => void,
): Promise<Problem | undefined> {
  const { turn, controller } = request;
  const { signal } = controller;
  for (let failures = 0; ;) {
    const before = turn.resume;
    let problem: Problem | undefined;
    try {
      const response = await (before === undefined ? post(question, signal) : resume(before, signal));
      request.lastReceivedAt = performance.now();
      if (response.status === 204) return pageProblem("interrupted", "lost.title", "lost.detail");
      if (!response.ok || !response.body || !isEventStream(response)) {
        problem = await readProblem(response, functionKey !== "");
        if (before === undefined) {
          if (noteRefusedField(problem)) continue;
          return problem;
        }
        if (response.status < 500 && response.status !== 429)
          return pageProblem("interrupted", "lost.title", "lost.detail");
      } else {
        if (turn.state === "connecting") {
          setState("thinking");
          announce(t("thinking"));
        }
        const end = await readAnswer(response.body, request, setState);
        if (end === "continue" && turn.resume !== before) {
          failures = 0;
          continue;
        }
        if (typeof end === "object") {
          const cutUpstream = end.problem?.code === "upstream_interrupted" || end.problem?.code === "upstream_timeout";
          if (!cutUpstream || turn.resume === undefined) return end.problem;
        }
        problem = typeof end === "object" ? end.problem : pageProblem("interrupted", "lost.title", "lost.detail");
      }
    } catch (error) {
      if (signal.aborted) return undefined;
      // When the user leaves the page, the browser aborts its requests first. The page is gone before this delay ends,
      // so the answer stays stored as unfinished instead of failed.
      await delay(200, signal);
      console.info(error);
      problem =
        turn.state === "connecting"
          ? pageProblem("unreachable", "unreachable.title", "unreachable.detail")
          : pageProblem("interrupted", "lost.title", "lostNetwork.detail");
    }
    if (signal.aborted) return undefined;
    failures = turn.resume === before ? failures + 1 : 1;
    if (turn.resume === undefined || failures > MAX_RESUMPTIONS) return problem;
    request.resuming = true;
    updateClock();
    await delay(Math.min(250 * 2 ** failures, 8000), signal);
    if (signal.aborted) return undefined;
  }
}

const isEventStream = (response: Response): boolean =>
  /^text\/event-stream\b/i.test(response.headers.get("Content-Type") ?? "");

/** A sign-in page in front of the app redirects, and must not receive a prompt. */
const NO_REDIRECT = { cache: "no-store", redirect: "manual" } as const;

function post(question: Turn, signal: AbortSignal): Promise<Response> {
  return fetch(siblingUrl("stream"), {
    method: "POST",
    headers: requestHeaders({ "Content-Type": "application/json", Accept: "text/event-stream" }),
    body: requestBody(question),
    signal,
    ...NO_REDIRECT,
  });
}

/** Goes on after the last event that was received. */
function resume(id: string, signal: AbortSignal): Promise<Response> {
  const headers = requestHeaders({ Accept: "text/event-stream", "Last-Event-ID": id });
  return fetch(siblingUrl(`stream/${id}`), { headers, signal, ...NO_REDIRECT });
}

function delay(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Reads the events of one connection: to the end of the answer, where it goes on elsewhere, or where it was cut. */
async function readAnswer(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  request: Running,
  setState: (state: State) => void,
): Promise<{ problem?: Problem } | "continue" | "cut"> {
  const { turn } = request;
  const view = views.get(turn)!;
  const metrics = turn.metrics!;
  const elapsed = (): number => (performance.now() - request.startedAt) / 1000;
  for await (const event of serverSentEvents(body)) {
    request.lastReceivedAt = performance.now();
    if (event.name === "message") {
      const { text } = JSON.parse(event.data) as { text?: string };
      if (text) {
        request.lastTextAt = request.lastReceivedAt;
        request.resuming = false;
        if (turn.state !== "streaming") {
          metrics.firstToken ??= elapsed();
          if (turn.reasoning) {
            metrics.thought ??= elapsed();
            view.reasoning!.finish(metrics.thought);
          }
          setState("streaming");
          announce(t("writing"));
        }
        turn.text += text;
        view.markdown!.append(text);
        saveSoon();
      }
    } else if (event.name === "reasoning") {
      const { text } = JSON.parse(event.data) as { text?: string };
      if (text) {
        turn.reasoning = (turn.reasoning ?? "") + text;
        view.reasoning!.append(text);
        saveSoon();
      }
    } else if (event.name === "continue") {
      const { id, after } = JSON.parse(event.data) as { id?: unknown; after?: unknown };
      const next = `${String(id)}.${String(after)}`;
      if (!isEventId(next)) return "cut";
      turn.resume = next;
      return "continue";
    } else if (event.name === "done" || event.name === "error") {
      const result = JSON.parse(event.data) as Record<string, unknown> & { usage?: { output_tokens?: number } | null };
      metrics.tokens = result.usage?.output_tokens;
      if (typeof result["model"] === "string") metrics.model = result["model"];
      if (event.name === "error") return { problem: withTexts(result) };
      Object.assign(turn, { finish: result["finish_reason"], filter: result["content_filter"] });
      return {};
    }
    if (isEventId(event.id)) turn.resume = event.id;
  }
  return "cut";
}

function announceResult(turn: Turn): void {
  if (turn.state === "stopped") announce(t("stoppedShort"));
  else if (turn.state === "failed") {
    announce(t("failed", { text: `${turn.problem!.title}. ${turn.problem!.detail ?? ""}` }));
    if (turn.problem!.code === "key") askForKey(turn.problem!.title);
  } else {
    const text = views.get(turn)?.root?.textContent.trim() ?? "";
    announce(text.length <= 1500 ? t("complete", { text }) : t("completeWords", { n: text.split(/\s+/).length }));
  }
}

function stop(): void {
  if (!running) return;
  const { resume: last } = running.turn;
  running.controller.abort();
  // The generation of an answer that can be resumed goes on without a connection, until it is stopped.
  if (last === undefined) return;
  const url = siblingUrl(`stream/${last.slice(0, last.lastIndexOf("."))}`);
  fetch(url, { method: "DELETE", headers: requestHeaders(), keepalive: true, ...NO_REDIRECT }).catch(console.info);
}

function setBusy(busy: boolean): void {
  document.body.classList.toggle("busy", busy);
  $("send").setAttribute("aria-label", t(busy ? "stop" : "send"));
  $("send")
    .querySelector("use")!
    .setAttribute("href", busy ? "#icon-stop" : "#icon-send");
  updateComposer();
}

async function loadModels(): Promise<void> {
  let names: string[] = [];
  try {
    const response = await fetch(siblingUrl("v1/models"), {
      headers: requestHeaders(),
      cache: "no-store",
      redirect: "manual",
    });
    if (response.ok)
      names = ((await response.json()) as { data: { id: unknown }[] }).data.map((each) => String(each.id));
    else if (response.status === 401) {
      const problem = await readProblem(response, functionKey !== "");
      if (problem.code === "key" && !running) askForKey(problem.title);
    }
  } catch (error) {
    console.info("The list of models could not be loaded; the default model is used.", error);
  }
  const offered = config.models.length ? names.filter((name) => config.models.includes(name)) : names;
  const select = $<HTMLSelectElement>("model");
  select.replaceChildren(...offered.map((name) => createElement("option", { value: name }, name)));
  if (!offered.includes(conversation.model))
    conversation.model = offered.length && offered[0] !== names[0] ? offered[0]! : "";
  select.value = conversation.model || offered[0] || "";
  $("model-choice").hidden = offered.length < 2;
}

/* ── User input ──────────────────────────────────────────────────────────────────────────────────────────────────── */

const isTouch = matchMedia("(pointer: coarse)").matches;
const prompt = $<HTMLTextAreaElement>("prompt");

/** Focuses the message field, or on touch screens the send button, as the field would open the on-screen keyboard. */
function focusComposer(): void {
  (isTouch ? $("send") : prompt).focus({ preventScroll: true });
}

function updateComposer(): void {
  fitHeight(prompt);
  $("send").setAttribute("aria-disabled", String(!running && !prompt.value.trim() && !pictures.pictures.length));
}

function send(): void {
  const text = prompt.value;
  if (running) {
    announce(t("waitForAnswer"));
    return;
  }
  if (!text.trim() && !pictures.pictures.length) return;
  prompt.value = "";
  tab.write("draft", "");
  ask(text.trim(), undefined, pictures.take());
  updateComposer();
}

/** The Enter key that confirms an input method's composition, for example in Japanese, does not send. On a touch screen
    Enter makes a line, and the button sends. */
function isSendKey(event: KeyboardEvent): boolean {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return false;
  return event.ctrlKey || event.metaKey || (!event.shiftKey && !isTouch);
}

prompt.addEventListener("input", () => {
  updateComposer();
  tab.write("draft", prompt.value);
});
prompt.addEventListener("keydown", (event) => {
  if (isSendKey(event)) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !prompt.value && !event.isComposing && !running) {
    const question = path(conversation).findLast((turn) => turn.role === "user");
    if (question) {
      event.preventDefault();
      editMessage(question);
    }
  }
});
$("composer").addEventListener("submit", (event) => event.preventDefault());
$("send").addEventListener("click", (event) => {
  if (!running) send();
  else if (event.detail < 2) stop(); // ignore the second click of a double click on Send
  focusComposer();
});

/** Shortcuts; the sheet lists them. */
addEventListener("keydown", (event) => {
  if (event.defaultPrevented) return;
  const command = event.ctrlKey || event.metaKey;
  const inDialog = document.querySelector("dialog[open]") !== null;
  const inField =
    event.target instanceof HTMLTextAreaElement ||
    event.target instanceof HTMLInputElement ||
    event.target instanceof HTMLSelectElement;
  const action = ((): (() => void) | null => {
    if (event.key === "Escape") return running && !inDialog ? stop : null;
    if (inDialog) return null;
    if (command && event.shiftKey && event.code === "KeyO") return startNewChat;
    if (command && !event.shiftKey && event.code === "KeyK") return () => void history.open();
    if (command && event.shiftKey && event.code === "KeyC") return copyLastAnswer;
    if ((command && event.key === "/") || (event.key === "?" && !inField))
      return () => $<HTMLDialogElement>("shortcuts-dialog").showModal();
    if (event.key === "/" && !command && !inField) return focusComposer;
    return null;
  })();
  if (!action) return;
  event.preventDefault();
  action();
});

function copyLastAnswer(): void {
  const turn = path(conversation).findLast((each) => each.role === "assistant" && each.text);
  const button =
    turn &&
    [...(views.get(turn)?.section.querySelectorAll<HTMLElement>(":scope > div > .toolbar > button") ?? [])].find(
      (each) => each.querySelector('use[href="#icon-copy"]'),
    );
  button?.click();
}

$("conversation").addEventListener("click", (event) => {
  const button = (event.target as Element).closest<HTMLElement>("button[data-action=copy-code]");
  if (!button) return;
  const code = button.closest(".code")!.querySelector("code")!.textContent.replace(/\n$/, "");
  void copyText(code, button, { copied: t("copied"), failed: t("copyFailed") });
});

/** Edits a question: the old one stays, with its answers, as another version. */
function editMessage(turn: Turn): void {
  const { section, bubble } = views.get(turn)!;
  if (running || section.querySelector("form")) return;
  const field = createElement("textarea", {
    className: "field",
    value: turn.text,
    dir: "auto",
    ariaLabel: t("editYourMessage"),
  });
  const toolbar = section.querySelector<HTMLElement>(".toolbar")!;
  const close = (): void => {
    form.remove();
    bubble!.hidden = !turn.text;
    toolbar.hidden = false;
    toolbar.querySelector<HTMLElement>("button:last-of-type")!.focus();
  };
  const submit = (): void => {
    const text = field.value.trim();
    if ((!text && !turn.pictures?.length) || running) return;
    ask(text, conversation.turns.find((each) => each.id === turn.parent) ?? null, turn.pictures);
    focusComposer();
  };
  const form = createElement(
    "form",
    { className: "edit-form" },
    field,
    createElement(
      "div",
      { className: "actions" },
      createButton("action", t("cancel"), "", close),
      createButton("action primary", t("send"), "", submit),
    ),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
  field.addEventListener("input", () => fitHeight(field));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      close();
    } else if (isSendKey(event)) {
      event.preventDefault();
      submit();
    }
  });
  bubble!.hidden = true;
  toolbar.hidden = true;
  section.insertBefore(form, bubble!);
  fitHeight(field);
  field.focus();
}

/* ── Conversations ───────────────────────────────────────────────────────────────────────────────────────────────── */

/** Ends the request in progress; its answer stays in its conversation as far as it came. */
function leaveAnswer(): void {
  if (!running) return;
  const { turn } = running;
  running.discarded = true;
  stop();
  running = null;
  turn.state = "stopped";
  setBusy(false);
}

let undoTimer = 0;
function offerUndo(label: string, action: (() => void) | null): void {
  clearTimeout(undoTimer);
  const button = $("undo");
  button.querySelector("span")!.textContent = label;
  button.hidden = action === null;
  button.onclick = () => {
    offerUndo("", null);
    action?.();
  };
  if (action) undoTimer = window.setTimeout(() => offerUndo("", null), 10_000);
}

function openConversation(next: Conversation): void {
  leaveAnswer();
  save();
  conversation = next;
  showConversation();
  save();
  $<HTMLSelectElement>("model").value = conversation.model || $<HTMLSelectElement>("model").options[0]?.value || "";
  updateSettings();
  autoScroll = true;
  scrollToLatest();
}

function startNewChat(): void {
  const before = conversation;
  openConversation(newConversation(before));
  focusComposer();
  announce(t("newChat"));
  offerUndo(
    t("restore"),
    before.turns.length
      ? () => {
          openConversation(before);
          focusComposer();
        }
      : null,
  );
}
$("new-chat").addEventListener("click", startNewChat);

const history = new History(device, {
  current: () => conversation,
  open: (next) => {
    offerUndo("", null);
    openConversation(next);
    focusComposer();
  },
  changed: (changed) => {
    if (changed.id !== conversation.id) return;
    Object.assign(conversation, { title: changed.title, named: changed.named, pinned: changed.pinned });
    save();
    document.title = `${conversation.title} · ${config.name}`;
  },
  removed: (removed) => {
    const wasShown = removed.id === conversation.id;
    if (wasShown) {
      leaveAnswer();
      conversation = newConversation(conversation);
      showConversation();
      save();
    }
    announce(t("deleted"));
    const shown = wasShown ? conversation : null;
    const bringBack = async (): Promise<void> => {
      offerUndo("", null);
      await device.save(removed).catch(console.info);
      if (conversation === shown && !conversation.turns.length) openConversation(removed);
      announce(t("restored"));
    };
    offerUndo(t("restore"), () => void bringBack());
    return bringBack;
  },
});
$("open-history").addEventListener("click", () => void history.open());

function askForKey(reason: string): void {
  $("key-reason").textContent = `${reason}.`;
  $<HTMLInputElement>("key").value = "";
  const dialog = $<HTMLDialogElement>("key-dialog");
  if (!dialog.open) dialog.showModal();
  $("key").focus();
}

function setKey(key: string): void {
  functionKey = key;
  tab.write("key", key);
  updateSettings();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($<HTMLInputElement>("key").value.trim());
  $<HTMLInputElement>("key").value = "";
  $<HTMLDialogElement>("key-dialog").close();
  focusComposer();
  void loadModels();
  const turn = path(conversation).at(-1);
  if (turn?.problem?.code === "key") retry(turn);
});
$("key-cancel").addEventListener("click", () => $<HTMLDialogElement>("key-dialog").close());

/* ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────── */

function updateSettings(): void {
  $("key-state").textContent = t(functionKey ? "keyStored" : "keyNone");
  $("key-change").textContent = t(functionKey ? "removeKey" : "enterKey");
  $("open-settings").classList.toggle("has-instructions", conversation.instructions.trim() !== "");
  $<HTMLSelectElement>("theme").value = preferences.theme;
  $<HTMLSelectElement>("language").value = preferences.language;
  $<HTMLInputElement>("keep").checked = preferences.keep;
}

function applyTheme(): void {
  if (preferences.theme) document.documentElement.dataset["theme"] = preferences.theme;
  else delete document.documentElement.dataset["theme"];
}

$("open-settings").addEventListener("click", () => {
  $<HTMLTextAreaElement>("instructions").value = conversation.instructions;
  updateSettings();
  $<HTMLDialogElement>("settings-dialog").showModal();
});
$("instructions").addEventListener("input", () => {
  conversation.instructions = $<HTMLTextAreaElement>("instructions").value;
  saveSoon();
  updateSettings();
});
$("theme").addEventListener("change", () => {
  const value = $<HTMLSelectElement>("theme").value;
  preferences.theme = value === "light" || value === "dark" ? value : "";
  writePreferences(PAGE_PATH, preferences);
  applyTheme();
});
$("language").addEventListener("change", () => {
  preferences.language = $<HTMLSelectElement>("language").value;
  writePreferences(PAGE_PATH, preferences);
  void translate();
});
$("keep").addEventListener("change", () => {
  preferences.keep = $<HTMLInputElement>("keep").checked;
  writePreferences(PAGE_PATH, preferences);
  $("open-history").hidden = !preferences.keep;
  if (preferences.keep) {
    save();
    return;
  }
  // What was kept is removed; it can be brought back.
  void device.list().then(async (all) => {
    await device.clear();
    offerUndo(t("undo"), () => {
      preferences.keep = true;
      writePreferences(PAGE_PATH, preferences);
      $("open-history").hidden = false;
      void Promise.all(all.map((each) => device.save(each))).then(() => announce(t("restored")), console.info);
      updateSettings();
    });
  }, console.info);
});
$("settings-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $<HTMLDialogElement>("settings-dialog").close();
});
$("settings-dialog").addEventListener("close", () => {
  save();
  focusComposer();
});
$("key-change").addEventListener("click", () => {
  if (functionKey) {
    setKey("");
    announce(t("keyRemoved"));
  } else {
    $<HTMLDialogElement>("settings-dialog").close();
    askForKey(t("enterKeyReason"));
  }
});
$("show-shortcuts").addEventListener("click", () => $<HTMLDialogElement>("shortcuts-dialog").showModal());
for (const button of document.querySelectorAll<HTMLElement>("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog")!.close());
}
$("clear-all").addEventListener("click", () => void clearAll());

async function clearAll(): Promise<void> {
  leaveAnswer();
  const before = conversation;
  let kept: Conversation[] = [];
  try {
    kept = await device.list();
    await device.clear();
  } catch (error) {
    console.info(error);
  }
  conversation = newConversation();
  setKey("");
  tab.write("draft", "");
  prompt.value = "";
  pictures.take();
  $<HTMLDialogElement>("settings-dialog").close();
  $<HTMLSelectElement>("model").selectedIndex = 0;
  showConversation();
  save();
  updateComposer();
  announce(t("cleared"));
  const anything = kept.length || before.turns.length || before.instructions;
  offerUndo(
    t("undo"),
    anything
      ? () => {
          void Promise.all(kept.map((each) => device.save(each))).catch(console.info);
          openConversation(before);
          announce(t("restored"));
        }
      : null,
  );
}

$("model").addEventListener("change", () => {
  conversation.model = $<HTMLSelectElement>("model").value;
  save();
});
addEventListener("pagehide", save);

/* ── Start ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

function showExamples(): void {
  const list = $("suggestions");
  if (config.examples.length)
    list.replaceChildren(
      ...config.examples.map((text) => createElement("li", {}, createElement("button", { type: "button" }, text))),
    );
  list.addEventListener("click", (event) => {
    const button = (event.target as Element).closest("button");
    if (!button) return;
    ask(button.textContent);
    focusComposer();
  });
}

async function translate(): Promise<void> {
  const wanted = (preferences.language || preferredLanguage(navigator.languages)) as Language;
  if (wanted === currentLanguage()) return;
  await useLanguage(wanted, loadLanguage);
  showOperatorTexts();
  updateSettings();
  setBusy(running !== null);
  if (!running) showConversation();
}

/** The operator's texts are shown in every language. */
function showOperatorTexts(): void {
  $("name").textContent = config.name;
  if (config.greeting) $("greeting").textContent = config.greeting;
  if (config.notice) $("notice").textContent = config.notice;
  $("notice").hidden = !config.notice;
}

export function start(): void {
  applyTheme();
  showOperatorTexts();
  showExamples();
  restore();
  prompt.value = tab.read("draft") ?? "";
  if (isTouch) prompt.enterKeyHint = "enter";
  $("open-history").hidden = !preferences.keep;
  pictures.listen(prompt, $("attach"), $<HTMLInputElement>("files"));
  updateSettings();
  showConversation();
  updateComposer();
  scrollToLatest();
  void translate();
  void loadModels();
  const last = path(conversation).at(-1);
  const question = conversation.turns.find((turn) => turn.id === last?.parent);
  if (last?.resume !== undefined && question) {
    delete last.note;
    void streamAnswer(question, last);
  }
}
