// Scores two answers, then records that a person chose the better one.
//
//     node score.js [HOST:PORT]
'use strict';

const { randomUUID } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const address = process.argv[2] ?? '127.0.0.1:50051';
const repository = path.join(__dirname, '..', '..', '..');
const protos = loader.loadSync(['rewardloop/v1/reward.proto', 'rewardloop/v1/feedback.proto'], {
  includeDirs: [path.join(repository, 'protos'), path.join(__dirname, 'protos')],
  keepCase: true,
  longs: String, // a JavaScript number holds only 53 bits
  enums: String,
  oneofs: true,
});
const api = grpc.loadPackageDefinition(protos).rewardloop.v1;

// It turns on round_robin over the addresses of a name, and repeats calls that are safe to repeat, as the Python client does.
const options = {
  'grpc.service_config': fs.readFileSync(path.join(repository, 'client', 'service_config.json'), 'utf8'),
};
const credentials = grpc.credentials.createInsecure();
const reward = new api.RewardService(address, credentials, options);
const feedback = new api.FeedbackService(address, credentials, options);

function call(service, method, request, seconds = 5) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 1000 * seconds);
    service[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function main() {
  const prompt = { text: 'How do I return a kettle?' };
  const responses = ['Send it back within 30 days; the label is in the box.', 'No idea.'];
  const scored = await call(reward, 'Score', { prompt, responses });
  scored.scores.forEach(({ score }, i) => console.log(score.toFixed(3), responses[i]));

  const best = scored.scores[0].score >= scored.scores[1].score ? 0 : 1;
  const event = {
    event_id: randomUUID(), // a signal that is sent again with the same id counts once
    prompt,
    responses,
    choice: { chosen: best, rejected: 1 - best },
    annotator_id: 'example',
    source: 'SOURCE_HUMAN',
  };
  const { stream_id, duplicate } = await call(feedback, 'Record', { event });
  console.log(`version ${scored.model_version.version}; recorded as ${stream_id}${duplicate ? ' (duplicate)' : ''}`);
}

main()
  .catch((error) => {
    console.error(`${grpc.status[error.code] ?? error.name}: ${error.details ?? error.stack}`);
    process.exitCode = 1;
  })
  .finally(() => [reward, feedback].forEach((service) => service.close()));
