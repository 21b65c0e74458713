// openai-node, unchanged: its package has no tests, so these are ours.
import OpenAI, { AzureOpenAI } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { assert, check, raises, url } from "./node_checks.mjs";

const text = "Grün 🌿 is\na colour, and \u2028 so on.";
const prompt = `say: ${text}`;
const model = "gpt-5.4-mini";
const embeddings = "text-embedding-3-small";
const messages = [{ role: "user", content: prompt }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const City = z.object({ name: z.string(), people: z.number() });

const clients = {
  OpenAI: new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 }),
  "OpenAI at Azure's v1 address": new OpenAI({ baseURL: `${url}/openai/v1`, apiKey: "unused", maxRetries: 0 }),
  AzureOpenAI: new AzureOpenAI({ endpoint: url, apiVersion: "2025-04-01-preview", apiKey: "unused", maxRetries: 0 }),
};

for (const [name, client] of Object.entries(clients)) {
  await check(`${name}: responses.create`, async () => {
    const response = await client.responses.create({ model, input: prompt, metadata: { a: "b" } });
    assert.equal(response.output_text, text);
    assert.deepEqual(response.metadata, { a: "b" });
    assert.ok(response.usage.output_tokens > 0);
  });

  await check(`${name}: responses.create, streamed`, async () => {
    let streamed = "";
    const numbers = [];
    let last;
    for await (const event of await client.responses.create({ model, input: prompt, stream: true })) {
      if (event.type === "response.output_text.delta") streamed += event.delta;
      numbers.push(event.sequence_number);
      last = event;
    }
    assert.equal(streamed, text);
    assert.equal(last.type, "response.completed");
    assert.deepEqual(numbers, [...numbers.keys()]);
  });

  await check(`${name}: responses.stream`, async () => {
    const stream = client.responses.stream({ model, input: prompt });
    let streamed = "";
    stream.on("response.output_text.delta", (event) => (streamed += event.delta));
    const final = await stream.finalResponse();
    assert.equal(streamed, text);
    assert.equal(final.output_text, text);
  });

  await check(`${name}: responses.parse`, async () => {
    const response = await client.responses.parse({ model, input: prompt, text: { format: zodTextFormat(City, "city") } });
    assert.equal(typeof response.output_parsed.people, "number");
  });

  await check(`${name}: a function call and its result`, async () => {
    const tools = [{ type: "function", name: "weather", strict: true, parameters }];
    const first = await client.responses.create({ model, input: prompt, tools });
    const call = first.output.find((item) => item.type === "function_call");
    assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["city"]);
    const input = [{ type: "function_call_output", call_id: call.call_id, output: "Rain." }];
    const second = await client.responses.create({ model, previous_response_id: first.id, input, tools });
    assert.match(second.output_text, /Rain/);
  });

  await check(`${name}: retrieve, input items, delete`, async () => {
    const { id } = await client.responses.create({ model, input: prompt });
    assert.equal((await client.responses.retrieve(id)).output_text, text);
    const items = [];
    for await (const item of client.responses.inputItems.list(id)) items.push(item.type);
    assert.deepEqual(items, ["message"]);
    await client.responses.delete(id);
    await raises(OpenAI.NotFoundError, { code: "response_not_found" }, () => client.responses.retrieve(id));
  });

  await check(`${name}: retrieve with starting_after`, async () => {
    const stream = await client.responses.create({ model, input: "500 words", background: true, stream: true });
    let id;
    let last = -1;
    for await (const event of stream) {
      id ??= event.response?.id;
      last = event.sequence_number;
      if (event.type === "response.output_text.delta") break;
    }
    const types = [];
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
      assert.equal(event.sequence_number, ++last);
      types.push(event.type);
    }
    assert.equal(types.at(-1), "response.completed");
  });

  await check(`${name}: cancel`, async () => {
    const { id } = await client.responses.create({ model: "paced-by-hand", input: "x", background: true });
    assert.equal((await client.responses.cancel(id)).status, "cancelled");
  });

  await check(`${name}: compact`, async () => {
    const { id } = await client.responses.create({ model, input: prompt });
    const compacted = await client.responses.compact({ model, previous_response_id: id });
    assert.equal(compacted.object, "response.compaction");
  });

  await check(`${name}: chat.completions.create`, async () => {
    const completion = await client.chat.completions.create({ model, messages });
    assert.equal(completion.choices[0].message.content, text);
  });

  await check(`${name}: chat.completions.create, streamed`, async () => {
    let streamed = "";
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      streamed += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(streamed, text);
  });

  await check(`${name}: chat.completions.stream, n = 2`, async () => {
    const stream = client.chat.completions.stream({ model, messages, n: 2, stream_options: { include_usage: true } });
    const final = await stream.finalChatCompletion();
    assert.deepEqual(final.choices.map((choice) => choice.message.content), [text, text]);
    assert.ok(final.usage.completion_tokens > 0);
  });

  await check(`${name}: chat.completions.parse`, async () => {
    const response_format = zodResponseFormat(City, "city");
    const completion = await client.chat.completions.parse({ model, messages, response_format });
    assert.equal(typeof completion.choices[0].message.parsed.name, "string");
  });

  await check(`${name}: chat.completions.runTools`, async () => {
    const called = [];
    const weather = {
      type: "function",
      function: {
        name: "weather",
        description: "The weather in a city.",
        parameters,
        parse: JSON.parse,
        function: ({ city }) => called.push(city) && "Rain.",
      },
    };
    const runner = client.chat.completions.runTools({ model, messages, tools: [weather], stream: true });
    assert.match(await runner.finalContent(), /Rain/);
    assert.equal(called.length, 1);
  });

  await check(`${name}: embeddings.create`, async () => {
    const made = await client.embeddings.create({ model: embeddings, input: ["x", "y"] });
    assert.deepEqual(made.data.map((item) => item.embedding.length), [1536, 1536]);
    const shorter = await client.embeddings.create({
      model: embeddings,
      input: "x",
      dimensions: 256,
      encoding_format: "float",
    });
    assert.equal(shorter.data[0].embedding.length, 256);
  });

  await check(`${name}: models.list and models.retrieve`, async () => {
    const ids = [];
    for await (const it of client.models.list()) ids.push(it.id);
    assert.ok(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
    await raises(OpenAI.NotFoundError, { status: 404, code: "model_not_found" }, () => client.models.retrieve("none"));
  });

  await check(`${name}: errors before the answer`, async () => {
    const create = (name, stream) => client.responses.create({ model: name, input: "x", stream });
    for (const stream of [false, true]) {
      await raises(OpenAI.RateLimitError, { status: 429, code: "rate_limited" }, () => create("fault-429-7", stream));
      await raises(OpenAI.BadRequestError, { code: "content_filter" }, () => create("fault-content-filter", stream));
      await raises(OpenAI.NotFoundError, { code: "model_not_found" }, () => create("unknown", stream));
    }
  });

  await check(`${name}: an answer that breaks off`, async () => {
    const events = [];
    try {
      for await (const event of await client.responses.create({ model: "fault-cut-midway", input: "x", stream: true })) {
        events.push(event);
      }
    } catch (error) {
      events.push(error);
    }
    const reported = events.find((event) => event.type === "error" || event instanceof OpenAI.APIError);
    assert.ok(reported, "the failure is reported");
    assert.ok(!events.some((event) => event.type === "response.completed"));
  });

  await check(`${name}: a path that is not there`, async () => {
    await raises(OpenAI.NotFoundError, { status: 404 }, () => client.files.list());
  });
}
