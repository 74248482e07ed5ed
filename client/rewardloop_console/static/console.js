// What every page of the console shares.
"use strict";

// A request that found no session leads to the sign-in page: htmx follows the header HX-Redirect by itself.
document.addEventListener("htmx:sendError", () => {
  const notice = document.getElementById("notice");
  if (notice) notice.textContent = "The console does not answer. Nothing was changed; try again.";
});
document.addEventListener("htmx:beforeRequest", () => {
  const notice = document.getElementById("notice");
  if (notice) notice.replaceChildren();
});
