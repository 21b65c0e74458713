/** Renders an answer while it streams. Finished blocks, which no further text can change, are not rendered again, so a
    frame costs only the last block; if that is still slow, frames are skipped. */

import { patchChildren } from "./dom";
import { parseBlocks, type Block, type Labels } from "./markdown/blocks";
import type { References } from "./markdown/inline";

const FRAME = 16; // milliseconds

export class MarkdownView {
  private source = "";
  private finishedLength = 0; // number of characters of `source` in finished blocks
  private lastFinished: Element | null = null;
  private shown: Block[] = []; // rendered after `lastFinished`
  private references: References = {};
  private frame = 0;
  private timer = 0;
  private frameDelay = 0; // milliseconds to wait before the next frame, so that the page stays responsive

  constructor(
    readonly root: HTMLElement,
    private readonly labels: Labels,
    private readonly onRender: () => void = () => undefined,
  ) {}

  append(text: string): void {
    this.source += text.replaceAll("\r\n", "\n").replaceAll("\r", "\n");
    if (this.frame || this.timer) return;
    if (this.frameDelay > FRAME) {
      this.timer = window.setTimeout(() => {
        this.timer = 0;
        this.requestFrame();
      }, this.frameDelay);
    } else this.requestFrame();
  }

  private requestFrame(): void {
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const startedAt = performance.now();
      this.render(true);
      this.frameDelay = 2 * (performance.now() - startedAt);
    });
  }

  finish(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.frame = this.timer = 0;
    this.render(false);
    if (this.finishedLength > 0 && Object.keys(this.references).length > 0) this.renderAgain();
  }

  /** An address may be defined after the links that use it. */
  private renderAgain(): void {
    const { blocks } = parseBlocks(this.source.split("\n"), false, {}, this.labels);
    this.finishedLength = 0;
    this.lastFinished = null;
    this.shown = blocks;
    this.root.replaceChildren();
    patchChildren(this.root, null, [], blocks);
    this.onRender();
  }

  private render(partial: boolean): void {
    const lines = this.source.slice(this.finishedLength).split("\n");
    const { blocks, references } = parseBlocks(lines, partial, this.references, this.labels);
    patchChildren(
      this.root,
      this.lastFinished ? this.lastFinished.nextSibling : this.root.firstChild,
      this.shown,
      blocks,
    );
    this.shown = blocks;
    if (!partial) this.references = references;
    const last = blocks.at(-1);
    if (partial && last && blocks.length > 1) {
      for (let line = last.line; line > 0; line -= 1)
        this.finishedLength = this.source.indexOf("\n", this.finishedLength) + 1;
      this.lastFinished = this.root.lastElementChild?.previousElementSibling ?? null;
      this.shown = [{ ...last, line: 0 }];
      const finished = lines.slice(0, last.line);
      if (finished.some((line) => line.includes("]:")))
        this.references = parseBlocks(finished, false, this.references, this.labels).references;
    }
    this.onRender();
  }
}
