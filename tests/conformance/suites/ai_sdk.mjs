// The AI SDK with its OpenAI provider, which speaks Responses by default, and its Azure provider.
import { createAzure } from "@ai-sdk/azure";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embed, embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { assert, check, url } from "./node_checks.mjs";

const text = "Grün 🌿 is\na colour, and \u2028 so on.";
const prompt = `say: ${text}`;
const model = "gpt-5.4-mini";
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const azure = createAzure({ baseURL: `${url}/openai/v1`, apiKey: "unused" });
const deployments = createAzure({ baseURL: `${url}/openai`, apiKey: "unused", useDeploymentBasedUrls: true });

const wires = {
  "the default provider": (name = model) => openai(name),
  Responses: (name = model) => openai.responses(name),
  "chat completions": (name = model) => openai.chat(name),
  "Azure, Responses": (name = model) => azure.responses(name),
  "Azure, chat completions": (name = model) => azure.chat(name),
  "Azure by deployment, Responses": (name = model) => deployments.responses(name),
  "Azure by deployment, chat completions": (name = model) => deployments.chat(name),
};
const City = z.object({ name: z.string(), people: z.number() });

function weather(called) {
  return tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => (called.push(city), "Rain."),
  });
}

for (const [name, of] of Object.entries(wires)) {
  await check(`${name}: generateText`, async () => {
    const result = await generateText({ model: of(), prompt, maxRetries: 0 });
    assert.equal(result.text, text);
    assert.equal(result.finishReason, "stop");
    assert.ok(result.usage.outputTokens > 0);
  });

  await check(`${name}: streamText`, async () => {
    const result = streamText({ model: of(), prompt, maxRetries: 0 });
    let streamed = "";
    for await (const part of result.textStream) streamed += part;
    assert.equal(streamed, text);
    assert.equal(await result.finishReason, "stop");
    assert.ok((await result.usage).outputTokens > 0);
  });

  await check(`${name}: a conversation`, async () => {
    const messages = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "What are lanterns?" },
      { role: "assistant", content: "Lights." },
      { role: "user", content: [{ type: "text", text: prompt }] },
    ];
    const result = await generateText({ model: of(), messages, allowSystemInMessages: true, maxRetries: 0 });
    assert.equal(result.text, text);
  });

  for (const streamed of [false, true]) {
    await check(`${name}: a tool call, ${streamed ? "streamed" : "not streamed"}`, async () => {
      const called = [];
      const options = {
        model: of(),
        prompt: "How is the weather in Lisbon?",
        tools: { weather: weather(called) },
        stopWhen: stepCountIs(3),
        maxRetries: 0,
      };
      const result = streamed ? streamText(options) : await generateText(options);
      if (streamed) for await (const _ of result.fullStream);
      assert.match(await result.text, /Rain/);
      assert.equal(called.length, 1);
      assert.equal((await result.steps).length, 2);
    });

    await check(`${name}: an object, ${streamed ? "streamed" : "not streamed"}`, async () => {
      const options = { model: of(), prompt: "A city.", output: Output.object({ schema: City }), maxRetries: 0 };
      const result = streamed ? streamText(options) : await generateText(options);
      if (streamed) for await (const _ of result.partialOutputStream);
      const output = await result.output;
      assert.equal(typeof output.people, "number");
    });
  }

  await check(`${name}: an image`, async () => {
    const image = { type: "image", image: Buffer.from("89504e470d0a1a0a", "hex"), mediaType: "image/png" };
    const messages = [{ role: "user", content: [{ type: "text", text: "What is it?" }, image] }];
    const result = await generateText({ model: of(), messages, maxRetries: 0 });
    assert.match(result.text, /1 picture \(image\/png, 8 bytes\)/);
  });

  await check(`${name}: a refused request`, async () => {
    const request = () => generateText({ model: of("fault-429-7"), prompt, maxRetries: 0 });
    const error = await request().then(() => assert.fail("no error"), (error) => error);
    assert.ok(APICallError.isInstance(error), String(error));
    assert.deepEqual([error.statusCode, error.isRetryable], [429, true]);
    assert.match(error.message, /The model is busy/);
  });

  await check(`${name}: an answer that breaks off`, async () => {
    const errors = [];
    const result = streamText({
      model: of("fault-cut-midway"),
      prompt,
      maxRetries: 0,
      onError: ({ error }) => errors.push(error),
    });
    try {
      for await (const part of result.fullStream) if (part.type === "error") errors.push(part.error);
    } catch (error) {
      errors.push(error);
    }
    assert.ok(errors.length > 0, "the failure is reported");
  });
}

for (const [name, of] of Object.entries({ "the default provider": () => openai(model), Azure: () => azure.responses(model) })) {
  await check(`${name}: reasoning`, async () => {
    const result = streamText({
      model: name === "Azure" ? azure.responses("o3-reasoning") : openai("o3-reasoning"),
      prompt,
      maxRetries: 0,
      providerOptions: { openai: { reasoningSummary: "auto" }, azure: { reasoningSummary: "auto" } },
    });
    for await (const _ of result.fullStream);
    assert.ok((await result.reasoningText).length > 0);
    assert.equal(await result.text, text);
  });

  await check(`${name}: previousResponseId`, async () => {
    const first = await generateText({ model: of(), prompt: "What are lanterns?", maxRetries: 0 });
    const { responseId } = first.providerMetadata.openai ?? first.providerMetadata.azure;
    const providerOptions = { openai: { previousResponseId: responseId }, azure: { previousResponseId: responseId } };
    const second = await generateText({ model: of(), prompt: "And mirrors?", providerOptions, maxRetries: 0 });
    assert.match(second.text, /I remember 1 earlier turn/);
  });
}

for (const [name, of] of Object.entries({ OpenAI: openai, Azure: azure, "Azure by deployment": deployments })) {
  await check(`${name}: embed and embedMany`, async () => {
    const embedding = of.embedding("text-embedding-3-small");
    const one = await embed({ model: embedding, value: "x", maxRetries: 0 });
    assert.equal(one.embedding.length, 1536);
    const many = await embedMany({ model: embedding, values: ["x", "y"], maxRetries: 0 });
    assert.equal(many.embeddings.length, 2);
  });
}
