import { currentHops } from '../registry/hops.js'

/** Milliseconds for which a request that came through another registry waits for what others have begun. */
const patience = 3000

/**
 * What comes of shared work. Two registries that are each other's upstreams could wait for each other when clients ask
 * both of them at once: each one's work waits for the other's, and neither request has come round. So a request from
 * another registry waits for a while, and then asks itself, whereby it does come round.
 * @param ask does without the others
 */
export async function joined<T>(shared: Promise<T>, ask: () => Promise<T>): Promise<T> {
  if (currentHops().length === 0) return shared
  let timer: NodeJS.Timeout | undefined
  const waited = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, patience)
  })
  try {
    return await Promise.race([shared, waited.then(ask)])
  } finally {
    clearTimeout(timer)
  }
}
