// rewardloop-feedback.js in a page that has only what it uses of the DOM. Prints what it sent, and what came back.
// Arguments: path of the script, address of the door, publishable token, its generation, another generation.
const [script, url, token, generationId, other] = process.argv.slice(2);

class Element {
  constructor(tag) {
    this.tag = tag;
    this.children = [];
  }
  append(...children) {
    this.children.push(...children);
  }
}
globalThis.document = { createElement: (tag) => new Element(tag) };

const { feedback } = await import(script);
const sent = [];
const errors = [];
const options = { url, token, generationId, displayOrder: [1, 0], onSent: (signal) => sent.push(signal), onError: (error) => errors.push(error.reason ?? error.message) };
const about = feedback(options);

const thumbs = about.thumbs();
await thumbs.children[0].onclick();
const again = await about.thumb(true);
const choice = about.choice();
await choice.children[2].onclick();
await choice.children[1].onclick();
const editor = about.editor("<img src=x onerror=alert(1)>");
editor.children[0].value = "a better answer";
await editor.children[1].children[0].onclick();
const foreign = await feedback({ ...options, generationId: other }).thumb(true);

console.log(JSON.stringify({
  sent,
  errors,
  again,
  foreign,
  pressed: thumbs.children.map((button) => button.ariaPressed),
  labels: [...thumbs.children, ...choice.children].map((button) => button.ariaLabel),
}));
