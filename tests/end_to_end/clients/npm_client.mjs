// The official npm client, unchanged: prints the results as one JSON object.
import OpenAI, { AzureOpenAI } from "openai";

const client = new OpenAI({
  baseURL: process.env.RELAY_URL + "/v1",
  apiKey: "unused",
  defaultHeaders: { "x-functions-key": process.env.RELAY_KEY },
  maxRetries: 0,
});
const model = process.env.RELAY_MODEL;
const messages = [{ role: "user", content: process.env.RELAY_PROMPT }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const results = {};

const document = await client.chat.completions.create({ model, messages });
results.document = document.choices[0].message.content;
results.tokens = document.usage.completion_tokens;

results.streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  results.streamed += chunk.choices[0]?.delta?.content ?? "";
  results.unrequestedUsage ||= Boolean(chunk.usage);
}

const helper = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
results.helper = await helper.finalContent();
results.helperTokens = (await helper.totalUsage()).completion_tokens;

const tools = client.chat.completions.stream({ model, messages, tools: [weather] });
const [call] = (await tools.finalMessage()).tool_calls;
results.tool = [call.function.name, Object.keys(JSON.parse(call.function.arguments))];

results.models = [];
for await (const it of client.models.list()) results.models.push(it.id);

results.model = (await client.models.retrieve(model)).id;

const { response } = await client.chat.completions.create({ model, messages }).withResponse();
results.requestId = response.headers.get("x-request-id");

async function errorOf(options, using = client) {
  try {
    const answer = await using.chat.completions.create({ messages, ...options });
    if (options.stream) for await (const _ of answer);
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null];
  }
  return ["nothing"];
}
results.errors = {
  "no key": await errorOf({ model }, client.withOptions({ defaultHeaders: {} })),
  "no model": await errorOf({ model: "unknown" }),
  refused: await errorOf({ model: "fault-429-7" }),
  failed: await errorOf({ model: "fault-500" }),
  filtered: await errorOf({ model: "fault-content-filter", stream: true }),
  midway: await errorOf({ model: "fault-error-midway", stream: true }),
};

const azure = new AzureOpenAI({
  endpoint: process.env.RELAY_URL,
  apiVersion: "2024-10-21",
  apiKey: "unused",
  defaultHeaders: { "x-functions-key": process.env.RELAY_KEY },
  maxRetries: 0,
});
results.azure = { streamed: "", models: [] };
const azureDocument = await azure.chat.completions.create({ model, messages });
results.azure.document = azureDocument.choices[0].message.content;
for await (const chunk of await azure.chat.completions.create({ model, messages, stream: true })) {
  results.azure.streamed += chunk.choices[0]?.delta?.content ?? "";
}
for await (const it of azure.models.list()) results.azure.models.push(it.id);
results.azure.model = (await azure.models.retrieve("busy/1")).id;
const slash = await azure.chat.completions.create({ model: "busy/1", messages });
results.azure.slash = slash.choices[0].message.content;
try {
  await azure.files.list();
} catch (error) {
  results.azure.missing = [error.constructor.name, error.status, error.code];
}

const retrying = client.withOptions({ maxRetries: 2 });
const retried = await retrying.chat.completions.create({ model: "fault-429-1", messages });
results.retried = retried.choices[0].message.content;

// Leaving the loop closes the stream.
const paced = process.env.RELAY_PACED_MODEL;
const closed = await client.chat.completions.create({ model: paced, messages, stream: true });
for await (const chunk of closed) if (chunk.choices[0]?.delta?.content) break;

console.log(JSON.stringify(results));
