// Chat, a stream, two answers, errors and a time-out by the official client, printed as one JSON object.
// Arguments: the address of the door's API, a token, and a token without the role generate.
import OpenAI, * as errors from "openai";

const [baseURL, apiKey, scorer] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const ask = (more = {}, options = {}) =>
  client.chat.completions.create({ model: "policy", messages, max_tokens: 60, temperature: 0, ...more }, options);

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const kind = Object.keys(errors).find((name) => name !== "default" && error.constructor === errors[name]);
    return { kind: kind ?? error.constructor.name, status: error.status ?? null, code: error.code ?? null, param: error.param ?? null };
  }
}

const whole = await ask();
const two = await ask({ n: 2, temperature: 1, seed: 3 });
const times = [];
let text = "";
let usage = null;
for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
  times.push(performance.now());
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const models = [];
for await (const model of await client.models.list()) models.push(model.id);

const found = {
  id: whole.id,
  whole: whole.choices[0].message.content,
  two: two.choices.map((choice) => choice.message.content),
  text,
  usage,
  chunks: times.length,
  firstToLastMs: times.at(-1) - times[0],
  models,
  wrongField: await failure(() => ask({ presence_penalty: 1 })),
  wrongModel: await failure(() => ask({ model: "policy:99" })),
  wrongToken: await failure(() => new OpenAI({ baseURL, apiKey: "rlt_wrong", maxRetries: 0 }).models.list()),
  wrongRole: await failure(() => new OpenAI({ baseURL, apiKey: scorer, maxRetries: 0 }).chat.completions.create({ model: "policy", messages })),
  timeOut: await failure(() => ask({ n: 64, max_tokens: 100, temperature: 1 }, { timeout: 50 })),
};
console.log(JSON.stringify(found));
