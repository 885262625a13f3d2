// SPDX-License-Identifier: Apache-2.0
// The daemon's rows as they come, and the way in to them.

const AGAIN = 2000; // ms until a daemon that was not there is asked again

// Ask for entry with `token`: whether it is right.
export async function logIn(token) {
  const answer = await fetch("login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  return answer.ok;
}

export async function logOut() {
  await fetch("logout", { method: "POST" });
}

// Call `onLook` with each look, `onLost` where there is no daemon at present, and `onRefused` once
// where one has to log in first.
export function follow({ onLook, onLost, onRefused }) {
  const source = new EventSource("rows");
  source.addEventListener("message", (event) => onLook(JSON.parse(event.data)));
  source.addEventListener("error", async () => {
    source.close();
    if (await isRefused()) {
      onRefused();
      return;
    }
    onLost();
    setTimeout(() => follow({ onLook, onLost, onRefused }), AGAIN);
  });
}

async function isRefused() {
  try {
    return (await fetch("session")).status === 401;
  } catch {
    return false; // nobody is there
  }
}
