/** Server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    (EventSource can neither POST nor set request headers.) */

export interface ServerSentEvent {
  /** The name of the event, "message" without one, or "comment". */
  readonly name: string;
  readonly data: string;
  /** The last event id, which a stream that can be resumed goes on after. */
  readonly id: string;
}

export async function* serverSentEvents(body: ReadableStream<BufferSource>): AsyncGenerator<ServerSentEvent> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "",
    eventName = "",
    id = "";
  let data: string[] = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    // A CR at the end may be the first half of a CRLF split between two chunks.
    const lines = buffer.split(/\r\n|\n|\r(?!$)/);
    buffer = lines.pop()!;
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield { name: eventName || "message", data: data.join("\n"), id };
        else if (id) yield { name: "comment", data: "", id };
        eventName = "";
        data = [];
      } else if (line.startsWith(":")) {
        yield { name: "comment", data: "", id };
      } else {
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") data.push(text);
        else if (field === "event") eventName = text;
        else if (field === "id" && !text.includes("\0")) id = text;
      }
    }
  }
}
