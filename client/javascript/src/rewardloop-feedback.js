// Feedback about one generation, by a publishable token. See rewardloop-feedback.d.ts.
export function feedback({ url, token, generationId, displayOrder, onSent = () => {}, onError = console.error }) {
  const ids = {}; // the same judgement again is sent under the same id, and counts once
  async function send(signal) {
    const key = JSON.stringify(signal);
    ids[key] ??= crypto.randomUUID();
    const body = { event_id: ids[key], generation_id: generationId, ...signal };
    if (displayOrder) body.display_order = displayOrder;
    try {
      const reply = await fetch(url + "/v1/feedback", {
        method: "POST",
        keepalive: true,
        credentials: "omit",
        headers: { "content-type": "application/json", authorization: "Bearer " + token },
        body: JSON.stringify(body),
      });
      const found = await reply.json();
      if (!reply.ok) throw Object.assign(new Error(found.error.message), found.error);
      onSent(signal);
      return found;
    } catch (error) {
      onError(error);
      return null;
    }
  }
  const thumb = (up, response = 0) => send({ kind: "thumb", up, response });
  const choose = (chosen, rejected) => send({ kind: "choice", chosen, rejected });
  const tie = (first = 0, second = 1) => send({ kind: "tie", first, second });
  const edit = (text, response = 0) => send({ kind: "edit", edited_text: text, response });

  const make = (tag, more, ...inside) => {
    const made = Object.assign(document.createElement(tag), more);
    made.append(...inside);
    return made;
  };
  function buttons(...choices) {
    const all = choices.map(([label, title, say]) => {
      const made = make("button", { type: "button", title, textContent: label, ariaLabel: title, ariaPressed: "false" });
      made.onclick = async () => {
        if (await say()) for (const each of all) each.ariaPressed = String(each === made);
      };
      return made;
    });
    return make("span", { className: "rewardloop", role: "group" }, ...all);
  }
  return {
    thumb, choose, tie, edit,
    thumbs: (response = 0) =>
      buttons(["👍", "Good answer", () => thumb(true, response)], ["👎", "Bad answer", () => thumb(false, response)]),
    choice: (a = 0, b = 1) =>
      buttons(["A", "A is better", () => choose(a, b)], ["=", "Equally good", () => tie(a, b)], ["B", "B is better", () => choose(b, a)]),
    editor(text, response = 0) {
      const box = make("textarea", { value: text, ariaLabel: "Your better answer" });
      return make("span", { className: "rewardloop" }, box, buttons(["Send", "Send your answer", () => edit(box.value, response)]));
    },
  };
}
