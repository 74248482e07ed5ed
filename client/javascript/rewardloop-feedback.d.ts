/** What a page needs to give feedback about one generation. */
export interface FeedbackOptions {
  /** Address of the HTTP door, without a slash at its end. */
  url: string;
  /** A publishable token for this generation, from the product's backend. Never a backend's own token. */
  token: string;
  /** The generation: the id of a chat completion. */
  generationId: string;
  /** Indices of the responses in the order in which the person sees them. */
  displayOrder?: number[];
  /** Called once a signal is durable. */
  onSent?: (signal: Signal) => void;
  /** Called if a signal was not taken. `reason` says why; default: console.error. */
  onError?: (error: FeedbackError) => void;
}

export type Signal =
  | { kind: "thumb"; up: boolean; response: number }
  | { kind: "choice"; chosen: number; rejected: number }
  | { kind: "tie"; first: number; second: number }
  | { kind: "edit"; edited_text: string; response: number };

export interface FeedbackError extends Error {
  /** Such as QUOTA_SPENT or EXPIRED_CREDENTIALS; absent if no answer came. */
  reason?: string;
  retry_after_s?: number;
}

export interface Recorded {
  event_id: string;
  stream_id: string;
  duplicate: boolean;
}

/** Each call gives one signal, and returns null after an error. The same signal again counts once. */
export interface Feedback {
  thumb(up: boolean, response?: number): Promise<Recorded | null>;
  choose(chosen: number, rejected: number): Promise<Recorded | null>;
  tie(first?: number, second?: number): Promise<Recorded | null>;
  edit(text: string, response?: number): Promise<Recorded | null>;
  /** Two buttons: a thumb up and a thumb down. */
  thumbs(response?: number): HTMLSpanElement;
  /** Three buttons: A is better, equally good, B is better. */
  choice(a?: number, b?: number): HTMLSpanElement;
  /** A box with the text, and a button that sends what a person made of it. */
  editor(text: string, response?: number): HTMLSpanElement;
}

export function feedback(options: FeedbackOptions): Feedback;
