/** The operator's settings, which the app writes into the page as JSON. */

export interface Config {
  readonly name: string;
  readonly greeting: string;
  readonly examples: readonly string[];
  readonly notice: string;
  /** The models to offer; none stands for all. */
  readonly models: readonly string[];
  /** Bytes of a request. */
  readonly maxBodyBytes: number;
  /** Whether the app takes `reasoning_summary`. */
  readonly reasoning: boolean;
  /** Whether the app takes `resumable`. */
  readonly resumable: boolean;
  /** Whether the app takes pictures. */
  readonly pictures: boolean;
}

export function readConfig(): Config {
  const given = JSON.parse(document.getElementById("config")?.textContent || "{}") as Partial<Config>;
  return {
    name: given.name || "Chat",
    greeting: given.greeting ?? "",
    examples: given.examples ?? [],
    notice: given.notice ?? "",
    models: given.models ?? [],
    maxBodyBytes: given.maxBodyBytes ?? 1024 * 1024,
    reasoning: given.reasoning !== false,
    resumable: given.resumable === true,
    pictures: given.pictures !== false,
  };
}
