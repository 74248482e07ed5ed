// Makes rewardloop-feedback.js of src/rewardloop-feedback.js: npm install && npm run build
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { transformSync } from "esbuild";

const source = readFileSync(new URL("src/rewardloop-feedback.js", import.meta.url));
const digest = createHash("sha256").update(source).digest("hex").slice(0, 16);
const { code } = transformSync(source.toString(), { minify: true, charset: "utf8", format: "esm", target: "es2022" });
const banner = `// Built by build.mjs from src/rewardloop-feedback.js, sha256 ${digest}.\n`;
writeFileSync(new URL("rewardloop-feedback.js", import.meta.url), banner + code);
