// Calls a rewardloop server with the .proto files alone and prints what it saw as one JSON object.
//
//     node client.js HOST:PORT PROTO_DIR... < request.json
//
// The request: {prompt, responses, stream}. PROTO_DIR: where imports are found, the repository's protos first.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, ...includeDirs] = process.argv.slice(2);
const asked = JSON.parse(fs.readFileSync(0, 'utf8'));

// int64 stays a string: JavaScript's numbers hold 53 bits.
const options = { keepCase: true, longs: String, enums: String, oneofs: true, includeDirs };

function find(name) {
  const directory = includeDirs.find((each) => fs.existsSync(path.join(each, name)));
  if (directory === undefined) throw new Error(`${name} is in none of ${includeDirs}`);
  return path.join(directory, name);
}

function load(...names) {
  return loader.loadSync(names.map(find), options);
}

const api = grpc.loadPackageDefinition(load('rewardloop/v1/reward.proto')).rewardloop.v1;
const healthApi = grpc.loadPackageDefinition(load('grpc/health/v1/health.proto')).grpc.health.v1;
const details = load('google/rpc/status.proto', 'google/rpc/error_details.proto');

function decode(name, bytes) {
  return details[name].deserialize(bytes);
}

// What google.rpc.Status carries, by the short name of each detail's type.
function statusDetails(status) {
  const found = {};
  for (const any of status.details) {
    const name = any.type_url.split('/').pop();
    found[name.split('.').pop()] = decode(name, any.value);
  }
  return found;
}

function errorOf(error) {
  const [packed] = error.metadata.get('grpc-status-details-bin');
  const status = packed === undefined ? { details: [] } : decode('google.rpc.Status', packed);
  return { code: grpc.status[error.code], ...statusDetails(status) };
}

function unary(client, method, request) {
  const deadline = new Date(Date.now() + 20_000);
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// Sends all requests at once and waits for the end of the stream.
function stream(client, requests) {
  return new Promise((resolve, reject) => {
    const call = client.ScoreStream({ deadline: new Date(Date.now() + 20_000) });
    const replies = [];
    call.on('data', (reply) => replies.push(reply));
    call.on('error', reject);
    call.on('end', () => resolve(replies));
    requests.forEach((request, i) => call.write({ request_id: `js-${i}`, request }));
    call.end();
  });
}

async function main() {
  const reward = new api.RewardService(address, grpc.credentials.createInsecure());
  const health = new healthApi.Health(address, grpc.credentials.createInsecure());
  const good = { prompt: { text: asked.prompt }, responses: asked.responses };
  const empty = { prompt: { text: asked.prompt }, responses: [] };
  const seen = {
    health: await unary(health, 'Check', { service: 'rewardloop.v1.RewardService' }),
    score: await unary(reward, 'Score', good),
    batch: await unary(reward, 'ScoreBatch', { groups: [good, empty] }),
    stream: await stream(reward, Array.from({ length: asked.stream }, () => good)),
    error: await unary(reward, 'Score', empty).then(() => null, errorOf),
    unknown_version: await unary(reward, 'Score', { ...good, pin_version: '99' }).then(() => null, errorOf),
  };
  seen.batch_error = statusDetails(seen.batch.items[1].error);
  process.stdout.write(JSON.stringify(seen) + '\n');
  reward.close();
  health.close();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
