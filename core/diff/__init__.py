"""Where two ways to run one model part: tensor by tensor, down to the option that is to blame."""
