// The official npm client, unchanged: prints what it made of the answers as one JSON object.
import OpenAI from "openai";

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
const seen = {};

const whole = await client.chat.completions.create({ model, messages });
seen.whole = whole.choices[0].message.content;
seen.tokens = whole.usage.completion_tokens;

seen.streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  seen.usageUnasked ||= Boolean(chunk.usage);
}

const helper = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
seen.helped = await helper.finalContent();
seen.helpedTokens = (await helper.totalUsage()).completion_tokens;

const tools = client.chat.completions.stream({ model, messages, tools: [weather] });
const [call] = (await tools.finalMessage()).tool_calls;
seen.tool = [call.function.name, Object.keys(JSON.parse(call.function.arguments))];

seen.models = [];
for await (const one of client.models.list()) seen.models.push(one.id);

const { response } = await client.chat.completions.create({ model, messages }).withResponse();
seen.requestId = response.headers.get("x-request-id");

async function failing(options, way = client) {
  try {
    const answer = await way.chat.completions.create({ messages, ...options });
    if (options.stream) for await (const _ of answer);
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null];
  }
  return ["nothing"];
}
seen.errors = {
  "no key": await failing({ model }, client.withOptions({ defaultHeaders: {} , })),
  "no model": await failing({ model: "none-of-ours" }),
  refused: await failing({ model: "fault-429-7" }),
  failed: await failing({ model: "fault-500" }),
  filtered: await failing({ model: "fault-content-filter", stream: true }),
  midway: await failing({ model: "fault-error-midway", stream: true }),
};

const retrying = client.withOptions({ maxRetries: 2 });
const retried = await retrying.chat.completions.create({ model: "fault-429-1", messages });
seen.retried = retried.choices[0].message.content;

const leaving = await client.chat.completions.create({ model: "paced-by-hand", messages, stream: true });
for await (const chunk of leaving) if (chunk.choices[0]?.delta?.content) break;
seen.left = true;

console.log(JSON.stringify(seen));
