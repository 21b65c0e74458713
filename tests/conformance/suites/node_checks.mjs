// Runs checks one after the other, and prints each one's result as a line of JSON.
import assert from "node:assert/strict";

export { assert };
export const url = process.env.RELAY_URL;

export async function check(name, run) {
  const timeout = AbortSignal.timeout(30_000);
  const late = new Promise((_, reject) => timeout.addEventListener("abort", () => reject(new Error("not within 30 s"))));
  let result = { name, outcome: "passed" };
  try {
    await Promise.race([run(), late]);
  } catch (error) {
    console.error(error);
    result = { name, outcome: "failed", detail: `${error?.name}: ${error?.message}`.split("\n").join(" ").slice(0, 300) };
  }
  console.log(JSON.stringify(result));
}

// An exception of this class, with these members.
export async function raises(kind, members, run) {
  let raised;
  try {
    await run();
  } catch (error) {
    raised = error;
  }
  assert.ok(raised instanceof kind, `raised ${raised?.constructor?.name}: ${raised?.message}`);
  for (const [name, value] of Object.entries(members)) assert.deepEqual(raised[name], value, name);
  return raised;
}
